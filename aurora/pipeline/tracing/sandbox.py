"""Runs a command where nothing is but what a plan names: `python aurora/pipeline/tracing/sandbox.py PLAN.json`. Linux alone; the standard library alone.

With namespaces the command sees a file system of its own, in which only the plan's files are, no network, another host
name, user and number of processors, and no other process. Where the kernel refuses them, Landlock lets it open the plan's
files alone, but it still sees that others are there.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

NAMESPACES, LANDLOCK, NONE = "namespaces", "landlock", "none"
USER, HOST = 4711, "aurora"
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
# Flags of a mount that its copy must keep: by statvfs's bit the one of mount.
LOCKED = {os.ST_NOSUID: 2, os.ST_NODEV: 4, os.ST_NOEXEC: 8, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048}
LOCKED |= {os.ST_RELATIME: 1 << 21}
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
READ = 1 << 0 | 1 << 2 | 1 << 3  # execute, read a file, list a folder
OF_FILES = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15  # what can be allowed of one file
DEVICES = ("null", "zero", "full", "random", "urandom")

libc = ctypes.CDLL(None, use_errno=True)


def offered() -> str:
    """The strongest of the kinds that this kernel lets this user have."""
    for kind in (NAMESPACES, LANDLOCK):
        child = os.fork()
        if not child:
            try:
                _unshare(network=False) if kind == NAMESPACES else _abi()
            except OSError:
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return kind
    return NONE


def _call(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _unshare(network: bool) -> None:
    user, group = os.geteuid(), os.getegid()
    flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID
    _call(libc.unshare(flags | (0 if network else CLONE_NEWNET)), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{USER} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{USER} {group} 1")
    _mount("none", "/", "", MS_REC | MS_PRIVATE)


def _mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    done = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None)
    _call(done, f"mount {target}")


def _bind(source: Path, root: Path, target: Path | None = None, writable: bool = False) -> None:
    """Shows a file or folder of the machine in the new root, at the same path; a link stays a link."""
    place = root / str(target or source).lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink() and target is None:
        if not place.is_symlink():
            place.symlink_to(source.readlink())
        return
    if source.is_dir():
        place.mkdir(exist_ok=True)
    elif not place.exists():
        place.touch()
    _mount(str(source), str(place), "", MS_BIND | MS_REC)
    if not writable:
        kept = sum(flag for bit, flag in LOCKED.items() if os.statvfs(source).f_flag & bit)
        _mount("none", str(place), "", MS_REMOUNT | MS_BIND | MS_RDONLY | kept)


def _build(plan: dict) -> Path:
    """The new root."""
    root = Path(plan["root"])
    root.mkdir(exist_ok=True)
    _mount("tmpfs", str(root), "tmpfs")
    for name in ("proc", "dev/shm", "tmp", "etc", plan["home"].lstrip("/")):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for path in sorted(map(Path, plan["readable"])):  # a folder before its files
        _bind(path, root)
    for name in plan["writable"]:
        _bind(Path(name), root, writable=True)
    devices = [f"/dev/{name}" for name in DEVICES] + [str(path) for path in Path("/dev").glob("nvidia*")]
    for name in devices:
        if Path(name).exists():
            _bind(Path(name), root, writable=True)
    (root / "dev/fd").symlink_to("/proc/self/fd")
    _mount("tmpfs", str(root / "dev/shm"), "tmpfs")
    (root / "etc/passwd").write_text(f"{HOST}:x:{USER}:{USER}::{plan['home']}:/bin/sh\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost {HOST}\n")
    if Path("/sys/devices").is_dir():
        _bind(Path("/sys"), root)
        other = root / "tmp/.online"
        other.write_text(f"0-{os.cpu_count()}\n")  # one more than there are
        online = Path("sys/devices/system/cpu/online")
        if (root / online).exists():
            _mount(str(other), str(root / online), "", MS_BIND)
        other.unlink()
    return root


def _fewer_processors() -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[:-1])


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


def _in_namespaces(plan: dict) -> int:
    _unshare(plan["network"])
    root = _build(plan)
    name = HOST.encode()
    _call(libc.sethostname(name, len(name)), "sethostname")
    if not plan["network"]:
        _loopback_up()
    _fewer_processors()
    first = os.fork()  # the first process of the new namespace: with it all others end
    if first:
        return os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        try:
            _mount("proc", str(root / "proc"), "proc")
        except OSError:  # a container that hides parts of its own
            _mount("/proc", str(root / "proc"), "", MS_BIND | MS_REC)
        os.chroot(root)
        os.chdir(plan["cwd"])
        child = os.fork()
        if not child:
            os.execve("/bin/sh", ["/bin/sh", "-c", plan["command"]], plan["environment"])
        os._exit(_collect_until(child))
    except OSError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        os._exit(125)


def _collect_until(child: int) -> int:
    """As the first process: collects what ends, until the command does."""
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _abi() -> int:
    return _call(libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1), "landlock")


def _in_landlock(plan: dict) -> int:
    abi = _abi()
    every = (1 << {1: 13, 2: 14}.get(abi, 15 if abi < 5 else 16)) - 1
    handled = struct.pack("QQ", every, 0 if plan["network"] else 3)[: 16 if abi >= 4 else 8]
    ruleset = _call(libc.syscall(LANDLOCK_CREATE, handled, ctypes.c_size_t(len(handled)), 0), "landlock")
    system = ["/proc", "/sys", "/dev"]
    allowed = dict.fromkeys([*plan["readable"], *system], READ) | dict.fromkeys(plan["writable"], every)
    allowed |= {str(path): every for name in DEVICES if (path := Path("/dev", name)).exists()}
    allowed["/dev/shm"] = every
    for name, access in allowed.items():
        if not Path(name).exists():
            continue
        handle = os.open(name, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", access & every & (~0 if Path(name).is_dir() else OF_FILES), handle)
        _call(libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock {name}")
        os.close(handle)
    _fewer_processors()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _call(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    os.chdir(plan["cwd"])
    os.execve("/bin/sh", ["/bin/sh", "-c", plan["command"]], plan["environment"])


def main(file: str) -> int:
    """Runs what the plan says, and returns its exit status; 125 where the sandbox cannot be built."""
    plan = json.loads(Path(file).read_text(encoding="utf-8"))
    try:
        if plan["kind"] == NAMESPACES:
            return _in_namespaces(plan)
        if plan["kind"] == LANDLOCK:
            return _in_landlock(plan)
        os.chdir(plan["cwd"])
        os.execve("/bin/sh", ["/bin/sh", "-c", plan["command"]], plan["environment"])
    except OSError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
