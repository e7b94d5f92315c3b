"""One file over HTTP, against a server with faults: it ends in the right bytes, or in one line with nothing left."""

import errno
import hashlib
import os
import random
from pathlib import Path
from threading import Event

import httpx2
import pytest
from stand_ins.hub_server import Fault, LocalHub

from aurora.core.errors import ResourceError, SourceError
from aurora.hub import client, part, transfer
from aurora.hub.transfer import (
    Refused,
    Remote,
    Stopped,
    Unreachable,
    bring,
    pause_asked,
    retry_after,
)
from aurora.intake.digests import Pins

BYTES = random.Random(1).randbytes(1 << 20)
PINS = Pins(len(BYTES), hashlib.sha256(BYTES).hexdigest())
PATH = "/rows.bin"


@pytest.fixture
def served(hub: LocalHub) -> LocalHub:
    hub.files[PATH] = BYTES
    return hub


def remote(hub: LocalHub, pins: Pins = PINS) -> Remote:
    return Remote(hub.url + PATH, "https://named.in/params", {}, pins)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


SURVIVED = {
    "cut after n bytes": [Fault(cut_after=300_000)],
    "reset after n bytes": [Fault(cut_after=300_000, resets=True)],
    "cut before the first byte": [Fault(cut_after=0)],
    "cut five times": [Fault(cut_after=150_000)] * 5,
    "cut, then ranges ignored": [Fault(cut_after=300_000), Fault(ignores_ranges=True)],
    "wrong bytes once": [Fault(flips=700_000)],
    "wrong bytes before a cut": [Fault(flips=7, cut_after=500_000)],
    "length too great": [Fault(claims=len(BYTES) + 10)],
    "length too small": [Fault(claims=1000)],
    "429 with Retry-After": [Fault(status=429, headers={"Retry-After": "0"})],
    "500 twice, then good": [Fault(status=500)] * 2,
    "502, 503, 504, 408": [Fault(status=status) for status in (502, 503, 504, 408)],
    "rate limit as 403": [Fault(status=403, headers={"Retry-After": "0"})],
    "gzip that nobody asked for": [Fault(packs=True)],
    "gzip, cut, gzip again": [Fault(packs=True, cut_after=300_000), Fault(packs=True), Fault()],
    "416 of another file": [Fault(cut_after=100), Fault(status=416)],
    "cut, then 500, then cut": [Fault(cut_after=9_999), Fault(status=500), Fault(cut_after=70_000)],
}


@pytest.mark.parametrize("faults", SURVIVED.values(), ids=SURVIVED)
def test_a_fault_is_survived(served: LocalHub, tmp_path: Path, faults: list[Fault]):
    served.faults[PATH] = list(faults)
    counted = []
    digests = bring(remote(served), tmp_path / "rows", counted.append)
    assert (tmp_path / "rows").read_bytes() == BYTES
    assert (digests.bytes, digests.sha256) == (PINS.bytes, PINS.sha256)
    assert sum(counted) == len(BYTES)
    assert left(tmp_path) == ["rows"]
    assert not served.faults[PATH]  # each was met


def test_silence_in_the_middle_is_survived(served: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(client, "TIMEOUT", httpx2.Timeout(0.3))
    served.faults[PATH] = [Fault(stalls=1.5)]
    bring(remote(served), tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == BYTES
    assert served.count(PATH) == 2
    served.faults[PATH] = [Fault(stalls=0.1)]  # slow, but not silent for too long
    bring(remote(served), tmp_path / "again")
    assert served.count(PATH) == 3


@pytest.mark.parametrize("named_by", ["tags", "dates", "nothing"])
def test_a_file_that_changes_between_two_ranges_is_never_joined(
    served: LocalHub, tmp_path: Path, named_by: str
):
    served.tags, served.dates = named_by == "tags", 1_700_000_000 if named_by == "dates" else 0
    new = BYTES[::-1]
    pins = Pins(None, hashlib.sha256(new).hexdigest())
    served.faults[PATH] = [Fault(cut_after=300_000), Fault(becomes=new)]
    if named_by == "dates":
        served.faults[PATH][1] = Fault(status=500)

        def changes(_: int) -> None:
            served.files[PATH], served.dates = new, 1_700_009_999

        bring(remote(served, pins), tmp_path / "rows", changes)
    else:
        bring(remote(served, pins), tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == new


def test_an_interrupted_download_goes_on_in_another_call(served: LocalHub, tmp_path: Path):
    served.faults[PATH] = [Fault(cut_after=600_000), *[Fault(status=503)] * 6]
    with pytest.raises(Unreachable, match=r"https://named\.in/params: HTTP 503, 6 times"):
        bring(remote(served), tmp_path / "rows")
    assert left(tmp_path) == ["rows.part", "rows.tag"]
    kept = (tmp_path / "rows.part").stat().st_size
    assert 500_000 < kept <= 600_000
    served.faults[PATH].clear()
    served.requests.clear()
    counted = []
    bring(remote(served), tmp_path / "rows", counted.append)
    assert (tmp_path / "rows").read_bytes() == BYTES
    assert counted[0] == kept
    assert [headers["Range"] for *_, headers in served.requests] == [f"bytes={kept}-"]
    assert served.sent[PATH] <= len(BYTES) + 110_000  # what lay in buffers when the connection broke
    served.requests.clear()
    bring(remote(served), tmp_path / "rows")  # here already
    assert served.requests == []


@pytest.mark.parametrize("named_by", ["tags", "dates"])
def test_without_a_pin_the_server_s_name_of_the_version_decides(
    served: LocalHub, tmp_path: Path, named_by: str
):
    served.tags, served.dates = named_by == "tags", 1_700_000_000 if named_by == "dates" else 0
    served.faults[PATH] = [Fault(cut_after=600_000)]
    bring(remote(served, Pins()), tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == BYTES
    assert served.sent[PATH] <= len(BYTES) + 110_000
    served.faults[PATH] = [Fault(cut_after=600_000), Fault(status=500)]

    def changes(count: int) -> None:
        served.files[PATH], served.dates = BYTES[::-1], served.dates and 1_700_009_999

    bring(remote(served, Pins()), tmp_path / "changed", changes)
    assert (tmp_path / "changed").read_bytes() == BYTES[::-1]


def test_a_tag_that_no_header_can_hold_names_nothing(served: LocalHub, tmp_path: Path):
    served.tags = False
    for stored in (b"\xff\xfe", '"标"'.encode(), b""):
        (tmp_path / "rows.part").write_bytes(BYTES[:300_000])
        (tmp_path / "rows.tag").write_bytes(stored)
        bring(remote(served), tmp_path / "rows")  # the pin decides
        assert (tmp_path / "rows").read_bytes() == BYTES
        (tmp_path / "rows").unlink()
        (tmp_path / "rows.part").write_bytes(b"of another version")
        (tmp_path / "rows.tag").write_bytes(stored)
        bring(remote(served, Pins()), tmp_path / "rows")  # nothing could: it begins anew
        assert (tmp_path / "rows").read_bytes() == BYTES
        (tmp_path / "rows").unlink()
    assert transfer._tag(httpx2.Headers([(b"etag", '"标"'.encode())])) == ""
    assert transfer._tag(httpx2.Headers({"etag": '"a b"'})) == '"a b"'


def test_without_pin_or_tag_nothing_is_gone_on_with(served: LocalHub, tmp_path: Path):
    served.tags = False
    served.faults[PATH] = [Fault(cut_after=600_000), *[Fault(status=503)] * 6]
    with pytest.raises(Unreachable):
        bring(remote(served, Pins()), tmp_path / "rows")
    served.faults[PATH].clear()
    bring(remote(served, Pins()), tmp_path / "rows")
    assert "Range" not in served.requests[-1][2]
    assert (tmp_path / "rows").read_bytes() == BYTES


def test_a_part_that_is_whole_needs_no_byte(served: LocalHub, tmp_path: Path):
    (tmp_path / "rows.part").write_bytes(BYTES)
    bring(remote(served), tmp_path / "rows")
    assert served.requests == []
    (tmp_path / "more.part").write_bytes(BYTES)  # the size is not known here: the server says 416
    bring(remote(served, Pins(None, PINS.sha256)), tmp_path / "more")
    assert served.sent[PATH] == 0
    assert (tmp_path / "more").read_bytes() == BYTES


@pytest.mark.parametrize(
    ("pins", "expected", "found"),
    [
        (Pins(None, "0" * 64), f"sha256 {'0' * 64}", PINS.sha256),
        (Pins(5), "bytes 5", str(len(BYTES))),
        (Pins(len(BYTES), None, "1" * 40), f"git_blob {'1' * 40}", "f"),
        (Pins(None, None, "1" * 40), f"git_blob {'1' * 40}", "f"),
    ],
)
def test_a_mismatch_says_expected_and_found_and_leaves_nothing(
    served: LocalHub, tmp_path: Path, pins: Pins, expected: str, found: str
):
    blob = hashlib.sha1(b"blob %d\0" % len(BYTES) + BYTES).hexdigest()
    with pytest.raises(SourceError) as caught:
        bring(remote(served, pins), tmp_path / "rows")
    assert f"https://named.in/params: expected {expected}, found {blob if found == 'f' else found};" in str(
        caught.value
    )
    assert left(tmp_path) == []
    bring(remote(served, Pins(pins.bytes and len(BYTES), None, blob)), tmp_path / "rows")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_refusal_is_not_tried_again(served: LocalHub, tmp_path: Path, status: int):
    served.faults[PATH] = [Fault(status=status, headers={"X-Error-Code": "Why"})] * 3
    with pytest.raises(Refused) as caught:
        bring(remote(served), tmp_path / "rows")
    assert (caught.value.status, caught.value.code) == (status, "Why")
    assert served.count(PATH) == 1


def test_a_server_that_asks_for_a_long_pause_is_left_in_peace(served: LocalHub, tmp_path: Path):
    served.faults[PATH] = [Fault(status=429, headers={"Retry-After": "4000"})]
    with pytest.raises(Unreachable, match=r"HTTP 429, and the server asks to wait 4,000 s"):
        bring(remote(served), tmp_path / "rows")
    assert served.count(PATH) == 1


def test_retry_after_is_seconds_or_a_date(monkeypatch: pytest.MonkeyPatch):
    assert retry_after("17") == 17
    assert retry_after(" 0 ") == 0
    for odd in (
        "soon",
        "",
        "²",
        "١",
        "-5",
        "1.5",
        "1e3",
        "Wed",
        "Wed, 99 Oct 2015 07:28:00 GMT",
        "0 Jan 0 0:0:0",
        "17, 18",
    ):
        assert retry_after(odd) is None, odd
    assert retry_after("9" * 5000) > 1e300
    monkeypatch.setattr(transfer.time, "time", lambda: 1445412478.0)
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 2
    assert retry_after("Wed, 21 Oct 2015 07:28:00 -0000") == 2  # of no known zone: that of the server is GMT
    assert retry_after("Wednesday, 21-Oct-15 07:28:00 GMT") == 2
    assert retry_after("Wed, 21 Oct 2014 07:28:00 GMT") == 0
    assert retry_after("Fri, 31 Dec 9999 23:59:59 GMT") > transfer.LONGEST_PAUSE


def test_the_hub_s_and_github_s_own_limits_are_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer.time, "time", lambda: 1000.0)
    assert pause_asked({}) is None
    assert pause_asked({"ratelimit": '"api";r=0;t=55'}) == 56
    assert pause_asked({"ratelimit": '"api";r=7;t=55'}) is None
    assert pause_asked({"ratelimit": '"api";r=0;t=55', "retry-after": "3"}) == 3
    assert pause_asked({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1030"}) == 30
    assert pause_asked({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "10"}) == 0
    assert pause_asked({"x-ratelimit-remaining": "9", "x-ratelimit-reset": "1030"}) is None
    for odd in ("", "²", "-1", "soon", "9" * 5000):
        assert pause_asked({"x-ratelimit-remaining": "0", "x-ratelimit-reset": odd}) is None
        assert pause_asked({"ratelimit": f'"api";r=0;t={odd}'}) is None


@pytest.mark.parametrize("asked", ["²", "-5", "soon", ""])
def test_a_pause_that_is_no_number_is_survived(served: LocalHub, tmp_path: Path, asked: str):
    served.faults[PATH] = [Fault(status=429, headers={"Retry-After": asked})]
    bring(remote(served), tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == BYTES


def test_a_huge_pause_is_one_line(served: LocalHub, tmp_path: Path):
    served.faults[PATH] = [Fault(status=503, headers={"Retry-After": "9" * 400})]
    with pytest.raises(Unreachable, match="HTTP 503, and the server asks to wait inf s; run again then"):
        bring(remote(served), tmp_path / "rows")


@pytest.mark.parametrize(
    "content_range",
    [
        "",
        "bytes",
        "bytes 300000-1/²",
        "bytes -1-5/9",
        "bytes 300000-5/*",
        f"bytes 300000-1/{'9' * 5000}",
        "bytes 0-1/9",
    ],
)
def test_a_range_that_is_not_the_one_asked_for_is_not_joined(
    served: LocalHub, tmp_path: Path, content_range: str
):
    (tmp_path / "rows.part").write_bytes(BYTES[:300_000])
    served.faults[PATH] = [Fault(status=206, headers={"Content-Range": content_range})]
    bring(remote(served), tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == BYTES


def test_a_body_without_an_end_is_refused(served: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer, "UNSAID_LIMIT", 300_000)
    served.faults[PATH] = [Fault(packs=True)]  # of a packed body the length says nothing
    with pytest.raises(SourceError, match="the server does not say its size, and 300,000 bytes are not all"):
        bring(remote(served, Pins(None, PINS.sha256)), tmp_path / "rows")
    assert left(tmp_path) == []
    served.faults[PATH] = [Fault(packs=True)]
    bring(remote(served), tmp_path / "rows")  # the pin says it


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, ResourceError), (errno.EIO, SourceError)])
def test_a_disk_that_takes_no_more_is_one_line_and_its_bytes_are_kept(
    served: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type
):
    write = part.Part.write

    def full(self: part.Part, block: bytes) -> None:
        if self.size > 400_000:
            raise OSError(number, os.strerror(number), str(self.path))
        write(self, block)

    monkeypatch.setattr(part.Part, "write", full)
    with pytest.raises(
        kind, match=rf"https://named\.in/params: .*rows\.part: {os.strerror(number)}; "
    ) as caught:
        bring(remote(served), tmp_path / "rows")
    assert type(caught.value) is kind
    monkeypatch.setattr(part.Part, "write", write)
    served.requests.clear()
    bring(remote(served), tmp_path / "rows")
    assert "Range" in served.requests[0][2]
    assert (tmp_path / "rows").read_bytes() == BYTES


def test_pauses_grow(served: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pauses = []

    class Clock(Event):
        def wait(self, pause: float) -> None:
            pauses.append(pause)

    monkeypatch.setattr(transfer, "PAUSE", 1)
    served.faults[PATH] = [Fault(status=500)] * 10
    with pytest.raises(Unreachable, match="HTTP 500, 6 times"):
        bring(remote(served), tmp_path / "rows", stopped=Clock())
    assert pauses == [1, 2, 4, 8, 16]


def test_an_empty_file_is_a_file(served: LocalHub, tmp_path: Path):
    served.files[PATH] = b""
    assert bring(remote(served, Pins()), tmp_path / "rows").bytes == 0
    assert left(tmp_path) == ["rows"]


def test_a_stop_keeps_what_has_come(served: LocalHub, tmp_path: Path):
    stopped = Event()
    with pytest.raises(Stopped):
        bring(remote(served), tmp_path / "rows", lambda count: stopped.set() if count else None, stopped)
    assert left(tmp_path) == ["rows.part", "rows.tag"]


def test_an_untrusted_certificate_and_a_closed_port_are_one_line(
    served: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(Unreachable, match=r"x: connection failed \(ConnectError\), 6 times"):
        bring(Remote("https://127.0.0.1:9/x", "x", {}, PINS), tmp_path / "rows")
    monkeypatch.delenv("SSL_CERT_FILE")
    transfer.session().close()
    client.set_client_factory(client._client)
    with pytest.raises(SourceError, match="x: the server's certificate is not trusted"):
        bring(Remote(served.url + PATH, "x", {}, PINS), tmp_path / "rows")


def test_a_disk_that_is_too_small_is_said_before_the_first_byte(
    served: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transfer, "room", lambda folder: 1000)
    with pytest.raises(ResourceError, match=r"1,048,576 bytes are to come, 1,000 are free"):
        bring(remote(served, Pins()), tmp_path / "rows")
    assert left(tmp_path) == []
