"""Archives: a folder is taken, and nothing that an archive says of itself is believed."""

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from aurora.core.errors import AuroraError, ResourceError, SourceError
from aurora.intake import archives
from aurora.intake.archives import unpack


def archive(kind: str, members: dict[str, bytes]) -> bytes:
    """A zip or tar file with these members, in their order."""
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in members.items():
                file.writestr(name, data)
        return content.getvalue()
    with tarfile.open(fileobj=content, mode=f"w:{kind.partition('.')[2]}") as file:
        for name, data in members.items():
            item = tarfile.TarInfo(name)
            item.size = len(data)
            file.addfile(item, io.BytesIO(data))
    return content.getvalue()


def header(kind: bytes = tarfile.REGTYPE, size: int = 0, name: str = "data/a") -> bytes:
    """One header block of a tar file."""
    item = tarfile.TarInfo(name)
    item.type, item.size = kind, size
    return item.tobuf(tarfile.GNU_FORMAT)


def packed_tar(packing: str, *blocks: bytes) -> bytes:
    """Headers and content as they stand, with an end mark, in a tar file of this kind."""
    pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "": bytes}[packing]
    return pack(b"".join(blocks) + bytes(1024))


def patched(content: bytes, offsets: dict[bytes, int], form: str, value: int) -> bytes:
    """A zip file with a field of its directory, and the same of the member's own header, overwritten."""
    raw = bytearray(content)
    for signature, offset in offsets.items():
        struct.pack_into(form, raw, raw.index(signature) + offset, value)
    return bytes(raw)


SIZES, FLAGS = {b"PK\1\2": 24, b"PK\3\4": 22}, {b"PK\1\2": 8, b"PK\3\4": 6}


def refused(tmp_path: Path, content: bytes, message: str, member: str = "") -> None:
    """Unpacks and expects one printable line that matches, and no folder."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        unpack(tmp_path / "a", member, tmp_path / "out")
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


MEMBERS = {
    "data/test/b.csv": b"12", "data/dev/a.csv": b"2", "data/._dev": b"x", "__MACOSX/z": b"x", "data2/c": b"3"
}  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "tar.", "tar.gz", "tar.bz2", "tar.xz"])
def test_a_folder_or_a_file_is_taken(kind: str, tmp_path: Path):
    (tmp_path / "a").write_bytes(archive(kind, MEMBERS))
    taken = unpack(tmp_path / "a", "data", tmp_path / "out")
    assert [(file["path"], file["bytes"]) for file in taken] == [("dev/a.csv", 1), ("test/b.csv", 2)]
    assert (tmp_path / "out/test/b.csv").read_bytes() == b"12"
    one = unpack(tmp_path / "a", "data/test/b.csv", tmp_path / "one")
    assert [file["path"] for file in one] == ["b.csv"]
    every = unpack(tmp_path / "a", "", tmp_path / "every")
    assert [file["path"] for file in every] == ["data/dev/a.csv", "data/test/b.csv", "data2/c"]


@pytest.mark.parametrize("kind", ["zip", "tar."])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((name, "leaves the folder") for name in ("data/../../evil", "../evil", "/data/evil", "data/..\\evil", "../evil/")),
        *((name, "control character") for name in ("data/a\nb", "data/\x1b]0;title\x07", "data/\u202egpj.exe", "data/a\x85b")),
        ("data/" + "n" * 300, "[Nn]ame too long"),
    ],
)  # fmt: skip
def test_a_name_that_is_not_safe_is_refused(kind: str, name: str, message: str, tmp_path: Path):
    refused(tmp_path, archive(kind, {"data/good": b"1", name: b""}), message)
    assert not (tmp_path.parent / "evil").exists()


def test_a_name_that_is_no_text_is_refused(tmp_path: Path):
    item = tarfile.TarInfo("data/\udcff")
    item.size = 1
    raw = item.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + b"1" + bytes(511) + bytes(1024)
    refused(tmp_path, raw, "control character")


@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(type_: bytes, tmp_path: Path):
    item = tarfile.TarInfo("data/link")
    item.type, item.linkname = type_, "/etc/passwd"
    refused(tmp_path, packed_tar("", item.tobuf()), "a link, a device, or a name")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        link = zipfile.ZipInfo("data/link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    refused(tmp_path, content.getvalue(), "a link, a device, or a name")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_by_ratio_is_refused_before_it_fills_the_disk(kind: str, tmp_path: Path):
    bomb = {f"data/{number}": bytes(24 << 20) for number in range(3)}
    refused(tmp_path, archive(kind, bomb), "more than 200 times its size")


@pytest.mark.minutes
def test_a_bomb_by_size_or_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refused(tmp_path, packed_tar("gz", header(tarfile.DIRTYPE, name="data/x") * 60_000), "more than 200 times its size")
    content = archive("tar.", {f"data/{number}": b"x" * 3000 for number in range(4)})
    monkeypatch.setattr(archives, "TOTAL_LIMIT", 10_000)
    refused(tmp_path, content, "more than 10,000 bytes")
    monkeypatch.setattr(archives, "TOTAL_LIMIT", 1 << 30)
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 3)
    refused(tmp_path, content, "more than 3 files and folders")


@pytest.mark.minutes
@pytest.mark.parametrize("packing", ["", "gz", "bz2", "xz"])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_would_fill_the_memory_is_never_read(kind: bytes, packing: str, tmp_path: Path):
    size = 48 << 20
    content = packed_tar(packing, header(size=1), b"1" + bytes(511), header(kind, size), bytes(size))
    tracemalloc.start()
    try:
        refused(tmp_path, content, "a header that is too large")
        assert tracemalloc.get_traced_memory()[1] < 24 << 20  # xz has a dictionary of 8 MiB
    finally:
        tracemalloc.stop()


def test_a_long_name_as_it_is_written_is_read(tmp_path: Path):
    name = "data/" + "/".join(["long" * 30] * 8)
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / f"a{form}", "w:gz", format=form) as file:
            item = tarfile.TarInfo(name)
            item.size, item.pax_headers = 1, {"comment": "c" * 2000}
            file.addfile(item, io.BytesIO(b"1"))
        taken = unpack(tmp_path / f"a{form}", "data", tmp_path / f"out{form}")
        assert [file["path"] for file in taken] == [name.removeprefix("data/")]


@pytest.mark.parametrize(
    "records", [{"GNU.sparse.map": "0,1,5", "GNU.sparse.size": "x"}, {"size": "-512"}, {"size": "9" * 5000}, {"path": "a\0b"}]
)  # fmt: skip
def test_a_malformed_or_sparse_header_is_one_line(records: dict[str, str], tmp_path: Path):
    item = tarfile.TarInfo("data/a")
    item.size, item.pax_headers = 512, records
    raw = item.create_pax_header(item.get_info(), "utf-8") + b"no numbers\n".ljust(512, b"x")
    refused(tmp_path, packed_tar("", raw, header()), "cannot be unpacked|control character|a device")


@pytest.mark.parametrize("size", [-1, -1024, -(1 << 40)])
def test_a_size_below_zero_does_not_lead_round_in_circles(size: int, tmp_path: Path):
    good = header(size=1) + b"1" + bytes(511)
    refused(tmp_path, packed_tar("", good, header(size=size), good), "cannot be unpacked")


def test_damage_is_one_line(tmp_path: Path):
    whole = archive("zip", {"data/a": b"1" * 5000})
    good = [header(size=1, name=f"data/{number}") + b"1" + bytes(511) for number in range(3)]
    broken = good[1].replace(b"data/1", b"data/x")  # its checksum no longer fits: not taken for the end
    for content in (
        whole[:45] + b"\xff" * 4 + whole[49:], packed_tar("", good[0], broken, good[2]),
        packed_tar("gz", good[0], good[1][:300]), b"".join(good),  # the last is cut between two members
        archive("tar.gz", {"data/a": b"1" * 50_000})[:-30], archive("tar.", {"data/a": b"1" * 50_000})[:20_000],
        patched(archive("zip", {"data/a": bytes(1 << 20)}), SIZES, "<I", 100),
    ):  # fmt: skip
        refused(tmp_path, content, "a: cannot be unpacked .*fetch it again")
    refused(tmp_path, patched(whole, FLAGS, "<H", 1), r"cannot be unpacked \(.* is encrypted")
    for content in (b"no archive", b""):
        refused(tmp_path, content, "neither a zip nor a tar file")
    refused(tmp_path, whole, r"a!/nothing: no such folder or file", "nothing")


@pytest.mark.parametrize("kind", ["zip", "tar.", "tar.gz", "tar.bz2", "tar.xz"])
def test_no_damage_of_an_archive_is_more_than_one_line(kind: str, tmp_path: Path):
    content = archive(kind, {"data/a": b"1" * 2000, "data/b" * 20: b"2" * 600, "data/c": os.urandom(300)})
    choice = random.Random(kind)
    for number in range(250):
        bad = bytearray(content)
        for _ in range(choice.choice((1, 1, 2, 8))):
            bad[choice.randrange(len(bad))] = choice.choice((0, 255, 49, choice.randrange(256)))
        if choice.random() < 0.2:
            del bad[choice.randrange(len(bad)) :]
        (tmp_path / "a").write_bytes(bad)
        with suppress(AuroraError):
            unpack(tmp_path / "a", "", tmp_path / f"out{number}")
            shutil.rmtree(tmp_path / f"out{number}")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_unpacks_without_a_bound_is_refused(method: int, tmp_path: Path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        file.writestr("data/a", bytes(64 << 20))
    small = patched(content.getvalue(), SIZES, "<I", 1000)  # it says less than it holds
    refused(tmp_path, small, rf"cannot be unpacked \(compression type {method}\)")


def test_a_directory_of_a_zip_file_that_would_fill_the_memory_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(archives, "DIRECTORY_LIMIT", 100_000)
    content = archive("zip", {f"data/{number}": b"" for number in range(3000)})
    refused(tmp_path, content, "a header that is too large")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar."])
def test_names_that_stand_twice_are_refused(kind: str, tmp_path: Path):
    refused(tmp_path, archive(kind, {"data/a": b"1", "data/A": b"2"}), "stands twice")
    refused(tmp_path, archive(kind, {"data/a": b"1", "data/a/b": b"2"}), "cannot be unpacked")


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, ResourceError, "a: cannot be unpacked.*: No space left on device; free disk and run again"),
        (errno.EROFS, SourceError, "Read-only file system; make its file system writable"),
    ],
)  # fmt: skip
def test_a_fault_of_the_disk_is_not_blamed_on_the_archive(
    number: int, kind: type, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a").write_bytes(archive("zip", {"data/a": b"1" * 50}))

    class Full(io.FileIO):
        def write(self, block: bytes) -> int:
            raise OSError(number, os.strerror(number))

    def full(path: Path, mode: str) -> io.IOBase:
        return Full(path, "x") if mode == "xb" else open(path, mode)

    monkeypatch.setattr(archives, "open", full, raising=False)
    with pytest.raises(kind, match=message):
        unpack(tmp_path / "a", "data", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_disk_that_is_too_small_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_bytes(archive("zip", {"other": b"1" * 9000, "data/a": b"1" * 5000}))
    monkeypatch.setattr(archives, "free_bytes", lambda folder: 5000)
    unpack(tmp_path / "a", "data", tmp_path / "enough")
    monkeypatch.setattr(archives, "free_bytes", lambda folder: 4999)
    with pytest.raises(ResourceError, match=r"unpacks to 5,000 bytes or more, 4,999 are free"):
        unpack(tmp_path / "a", "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()
