"""One file over HTTP: ranges, back-off and verification while the bytes stream.

The client, the addresses and the headers are huggingface_hub's; aurora.fetch says why this loop is not.
"""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Event

import httpx2
from huggingface_hub.errors import OfflineModeIsEnabled

from aurora.core.errors import ResourceError, SourceError
from aurora.core.files import remove
from aurora.hub.client import session
from aurora.hub.part import Part
from aurora.intake.digests import Digests, Pins, measure
from aurora.intake.disk import disk_error, room

TRIES = 6  # in a row without a new byte
PAUSE = 1.0  # seconds before the second try; doubles with each
LONGEST_PAUSE = 300.0  # seconds that a server's Retry-After may ask for
RETRIED = {408, 425, 429, 500, 502, 503, 504}
UNSAID_LIMIT = 8 << 30  # bytes of a file whose size neither a pin nor the server says
GROWTH = 1 << 16  # bytes of progress after which tries are counted anew


@dataclass(frozen=True)
class Remote:
    """One file to bring."""

    url: str
    uri: str
    """What messages call it: URLs behind redirects may be signed."""
    headers: dict[str, str] = field(repr=False)
    pins: Pins


class Refused(Exception):
    """The server said no for good; `status` and its X-Error-Code say why."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"HTTP {status} {code}".strip())
        self.status, self.code = status, code


class Unreachable(SourceError):
    """No answer, or none that helps, after all tries; the bytes so far are kept."""


class Again(Exception):
    """A try that failed in a way that may pass; `pause` is what the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class Stopped(Exception):
    """Another file of the same source has failed."""


def bring(
    remote: Remote,
    target: Path,
    advance: Callable[[int], None] = lambda count: None,
    stopped: Event | None = None,
) -> Digests:
    """Brings a file to `target`, verified against its pins, and returns its digests.

    Goes on where an earlier call stopped, by ranges, if the server still has the same version. `advance` is told of
    each count of bytes, negative where bytes had to be given up. Raises Refused on an answer that no second try
    mends, SourceError on any other failure, ResourceError if the disk is too small, and Stopped.
    """
    stopped = stopped or Event()
    if target.is_file():  # whole since an earlier call; it is measured again
        found = measure(target, remote.pins)
        named = remote.pins.sha256 or remote.pins.git_blob
        if named and found.difference(target) is None:
            advance(found.bytes)
            return found
        remove(target)
    part = Part(target, remote.pins, advance)
    try:
        patiently(remote.uri, lambda: _try(remote, part, stopped), lambda: part.size, stopped)
    except BaseException:
        part.abandon()
        raise
    part.file.close()
    part.path.rename(target)
    remove(part.tag_path)
    return part.digests


def _doubt(remote: Remote, part: Part, pin: str, expected: object, found: object) -> Exception:
    """Bytes that are not what their pin names: brought once more in one piece, then believed.

    Damage on the way, a truncated answer, or two versions joined by a range are mended by this.
    """
    part.doubts += 1
    part.restart()
    if part.doubts == 1:
        return Again(f"expected {pin} {expected}, found {found}", pause=0)
    return mismatch(remote.uri, pin, expected, found)


def mismatch(uri: str, pin: str, expected: object, found: object) -> SourceError:
    """The error for bytes that are not what their pin names."""
    return SourceError(
        f"{uri}: expected {pin} {expected}, found {found}; the source has changed or the download is damaged: "
        "run again, or correct the pin in params.yaml"
    )


def patiently(uri: str, attempt: Callable, size: Callable[[], int], stopped: Event) -> object:
    """Calls `attempt` until it raises no Again, with growing pauses; `size` tells of progress in bytes.

    Raises Unreachable when TRIES in a row brought nothing, or when the server asks to wait too long.
    """
    tries, furthest = 0, size()
    while True:
        try:
            return attempt()
        except Again as again:
            if size() >= furthest + GROWTH:
                tries = 0
            furthest = max(furthest, size())
            tries += 1
            pause = PAUSE * 2 ** (tries - 1) if again.pause is None else again.pause
            if pause > LONGEST_PAUSE:
                raise Unreachable(
                    f"{uri}: {again}, and the server asks to wait {pause:,.0f} s; run again then"
                ) from None
            if tries >= TRIES:
                raise Unreachable(
                    f"{uri}: {again}, {tries} times; run again later: what has come is kept"
                ) from None
            if stopped.wait(pause):
                raise Stopped from None


def _try(remote: Remote, part: Part, stopped: Event) -> None:
    headers = remote.headers | {"Accept-Encoding": "identity"}
    if part.size:
        if part.size == part.pins.bytes and part.digests.difference(part.path) is None:
            return  # ended between the last byte and the name
        headers["Range"] = f"bytes={part.size}-"
        # Where a hash is known it decides, and a server that knows no If-Range need not send all again.
        if part.tag and not (part.pins.sha256 or part.pins.git_blob):
            headers["If-Range"] = part.tag
    try:
        with session().stream("GET", remote.url, headers=headers) as response:
            total = _begin(remote, part, response)
            for block in response.iter_bytes() if response.status_code != 416 else ():
                _refuse_more(remote, part, total, part.size + len(block))
                part.write(block)
                if stopped.is_set():
                    raise Stopped
    except (httpx2.RequestError, httpx2.InvalidURL, ValueError) as error:
        raise failure(remote.uri, error) from None
    except OfflineModeIsEnabled:
        raise
    except OSError as error:
        raise disk_error(remote.uri, error) from None
    whole = total if total is not None else part.pins.bytes
    if whole is not None and part.size < whole:
        raise Again(f"connection closed at byte {part.size:,} of {whole:,}")
    if difference := part.digests.difference(part.path):
        raise _doubt(remote, part, *difference)


def _refuse_more(remote: Remote, part: Part, total: int | None, size: int) -> None:
    """Raises where a server sends more than the pin says, or no end of a file whose size nobody knows."""
    if part.pins.bytes is not None and size > part.pins.bytes:
        raise _doubt(remote, part, "bytes", part.pins.bytes, "more")
    if total is None and part.pins.bytes is None and size > UNSAID_LIMIT:
        part.restart()
        raise SourceError(
            f"{remote.uri}: the server does not say its size, and {UNSAID_LIMIT:,} bytes are not all; give bytes in params.yaml"
        )


def _begin(remote: Remote, part: Part, response: httpx2.Response) -> int | None:
    """Judges an answer's head, makes the part ready for its body, and returns the size of the whole file if known."""
    headers, status = response.headers, response.status_code
    limited = status == 403 and ("retry-after" in headers or headers.get("x-ratelimit-remaining") == "0")
    if status in RETRIED or status >= 500 or limited:
        raise Again(f"HTTP {429 if limited else status}", pause_asked(headers))
    if status == 416:
        if headers.get("content-range") == f"bytes */{part.size}":
            return part.size  # all of it is here
        part.restart()
        raise Again("HTTP 416")
    if status not in (200, 206):
        raise Refused(status, headers.get("x-error-code", ""))
    tag = _tag(headers)
    encoded = headers.get("content-encoding", "identity") != "identity"  # in spite of Accept-Encoding
    if status == 206:
        found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18})", headers.get("content-range", ""))
        changed = part.tag and tag and tag != part.tag
        if not found or int(found[1]) != part.size or changed or encoded:
            part.restart()
            raise Again("the answer is another part or version than was asked for", pause=0)
        total = int(found[2])
    else:
        part.restart("" if encoded else tag)
        total = int(headers["content-length"]) if "content-length" in headers and not encoded else None
    if None not in (total, part.pins.bytes) and total != part.pins.bytes:
        raise _doubt(remote, part, "bytes", part.pins.bytes, total)
    needed = (total or part.pins.bytes or 0) - part.size
    if needed > room(part.path.parent):
        raise ResourceError(
            f"{remote.uri}: {needed:,} bytes are to come, {room(part.path.parent):,} are free; free some"
        )
    return total


def _tag(headers: httpx2.Headers) -> str:
    """What names this version in If-Range: a strong ETag, else the date of change; empty if a header could hold neither."""
    tag = headers.get("etag", "")
    tag = tag if tag.startswith('"') else headers.get("last-modified", "")
    return tag if re.fullmatch("[ -~]+", tag) else ""


def pause_asked(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: by Retry-After, or as the hub or GitHub say when a limit ends; else None."""
    if "retry-after" in headers:
        return retry_after(headers["retry-after"])
    limit = re.search(r"\br=0;\s*t=([0-9]{1,9})\b", headers.get("ratelimit", ""))  # "api";r=0;t=55
    if limit:
        return float(limit[1]) + 1
    reset = headers.get("x-ratelimit-reset", "")
    if headers.get("x-ratelimit-remaining") == "0" and re.fullmatch("[0-9]{1,12}", reset):
        return max(0.0, float(reset) - time.time())
    return None


def retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date; None if it is neither."""
    if re.fullmatch("[0-9]+", value.strip()):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, when.replace(tzinfo=when.tzinfo or UTC).timestamp() - time.time())
    except (ValueError, TypeError, LookupError, OverflowError):
        return None


def failure(uri: str, error: Exception) -> Exception:
    """What the client's error means: Again where a second try may help, else SourceError."""
    if isinstance(
        error,
        httpx2.UnsupportedProtocol
        | httpx2.LocalProtocolError
        | httpx2.TooManyRedirects
        | httpx2.InvalidURL
        | ValueError,
    ):
        return SourceError(f"{uri}: {type(error).__name__}; correct the uri in params.yaml, or HF_ENDPOINT")
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return SourceError(
            f"{uri}: the server's certificate is not trusted; check uri, network and SSL_CERT_FILE"
        )
    reason = (
        "timed out"
        if isinstance(error, httpx2.TimeoutException)
        else f"connection failed ({type(error).__name__})"
    )
    return Again(reason)
