"""Makes glibc's allocator keep its memory: large tensors otherwise cost page faults at every step."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
KEEP = 2**31 - 1  # bytes of free heap that are not given back


def keep_heap() -> None:
    """Serves large blocks from the heap and never returns it; does nothing where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, KEEP)


def release_heap() -> None:
    """Gives free heap back once, as after loading; does nothing where the C library is not glibc."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
