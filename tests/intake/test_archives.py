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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    else:
        with tarfile.open(fileobj=content, mode=f"w:{kind.partition('.')[2]}") as file:
            for name, data in members.items():
                item = tarfile.TarInfo(name)
                item.size = len(data)
                file.addfile(item, io.BytesIO(data))
    return content.getvalue()


def refused(tmp_path: Path, content: bytes, message: str, member: str = "") -> None:
    """Unpacks and expects one line that matches, and no folder."""
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        unpack(tmp_path / "a", member, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


MEMBERS = {
    "data/test/b.csv": b"12",
    "data/dev/a.csv": b"2",
    "data/._dev": b"x",
    "__MACOSX/z": b"x",
    "data2/c": b"3",
}


@pytest.mark.parametrize("kind", ["zip", "tar.", "tar.gz", "tar.xz"])
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
@pytest.mark.parametrize("name", ["data/../../evil", "../evil", "/data/evil", "data/..\\evil"])
def test_a_member_that_leaves_the_folder_is_refused(kind: str, name: str, tmp_path: Path):
    refused(tmp_path, archive(kind, {"data/good": b"1", name: b"2"}), "leaves the folder")
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_of_a_tar_file_are_refused(type_: bytes, tmp_path: Path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        item = tarfile.TarInfo("data/link")
        item.type, item.linkname = type_, "/etc/passwd"
        file.addfile(item)
    refused(tmp_path, content.getvalue(), "a link, a device, or a name")


def test_a_link_in_a_zip_file_is_refused(tmp_path: Path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        item = zipfile.ZipInfo("data/link")
        item.create_system, item.external_attr = 3, 0o120777 << 16
        file.writestr(item, "/etc/passwd")
    refused(tmp_path, content.getvalue(), "a link, a device, or a name")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_by_ratio_is_refused_before_it_fills_the_disk(kind: str, tmp_path: Path):
    bomb = {f"data/{number}": bytes(24 << 20) for number in range(3)}
    refused(tmp_path, archive(kind, bomb), "more than 200 times its size")


def test_a_bomb_by_size_or_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = archive("tar.", {f"data/{number}": b"x" * 3000 for number in range(4)})
    monkeypatch.setattr(archives, "TOTAL_LIMIT", 10_000)
    refused(tmp_path, content, "more than 10,000 bytes")
    monkeypatch.setattr(archives, "TOTAL_LIMIT", 1 << 30)
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 3)
    refused(tmp_path, content, "more than 3 files and folders")


@contextmanager
def at_most(mebibytes: int) -> Iterator[None]:
    """Fails if Python takes more memory than this at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes << 20
    finally:
        tracemalloc.stop()


def packed_tar(name: str, *blocks: bytes) -> bytes:
    """Headers and content as they stand, with an end mark, in a tar file of this kind."""
    opener = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "": bytes}[
        name.partition(".")[2]
    ]
    return opener(b"".join(blocks) + bytes(1024))


def header(kind: bytes = tarfile.REGTYPE, size: int = 0, name: str = "data/a") -> bytes:
    """One header block of a tar file."""
    item = tarfile.TarInfo(name)
    item.type, item.size = kind, size
    return item.tobuf(tarfile.GNU_FORMAT)


HEADERS = {
    "long name": tarfile.GNUTYPE_LONGNAME,
    "long link": tarfile.GNUTYPE_LONGLINK,
    "PAX": tarfile.XHDTYPE,
    "global PAX": tarfile.XGLTYPE,
    "Solaris PAX": tarfile.SOLARIS_XHDTYPE,
}


@pytest.mark.parametrize("packing", ["tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("kind", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("first", [True, False])
def test_a_header_that_would_fill_the_memory_is_never_read(
    kind: bytes, packing: str, first: bool, tmp_path: Path
):
    size = 48 << 20
    before = b"" if first else header(size=1) + b"1" + bytes(511)
    content = packed_tar(packing, before, header(kind, size), bytes(size), header())
    with at_most(24):  # xz has a dictionary of 8 MiB
        refused(tmp_path, content, "a header that is too large to be sound")


def test_headers_that_each_are_small_do_not_add_up(tmp_path: Path):
    long = header(tarfile.GNUTYPE_LONGNAME, 4096) + b"n" * 4096
    refused(tmp_path, packed_tar("tar", long * 2000, header()), "a header that is too large to be sound")
    lines = b"".join(b"%d k%d=%s\n" % (4000, number, b"v" * 3991) for number in range(3))
    spread = header(tarfile.XGLTYPE, len(lines)) + lines + bytes(-len(lines) % 512) + header(tarfile.DIRTYPE)
    (tmp_path / "a").write_bytes(packed_tar("tar.gz", spread * 4000, header(size=1), b"1" + bytes(511)))
    with at_most(8), pytest.raises(SourceError, match="more than 200 times"):
        unpack(tmp_path / "a", "", tmp_path / "out")


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
    "records",
    [
        {"GNU.sparse.map": "x"},
        {"GNU.sparse.map": "0,1,5", "GNU.sparse.size": "x"},
        {"GNU.sparse.size": "9", "GNU.sparse.offset": "x", "GNU.sparse.numbytes": "y"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"},
        {"size": "-512"},
        {"size": "-10240"},
        {"size": "9" * 5000},
        {"path": "data/\0a"},
    ],
)
def test_a_malformed_or_sparse_header_is_one_line(records: dict[str, str], tmp_path: Path):
    item = tarfile.TarInfo("data/a")
    item.size, item.pax_headers = 512, records
    raw = item.create_pax_header(item.get_info(), "utf-8") + b"no numbers\n".ljust(512, b"x")
    refused(tmp_path, packed_tar("tar", raw, header()), "damaged archive|no sound file|leaves the folder")


@pytest.mark.parametrize("size", [-1, -512, -1024, -(1 << 40)])
def test_a_size_below_zero_does_not_lead_round_in_circles(size: int, tmp_path: Path):
    good = header(size=1) + b"1" + bytes(511)
    refused(tmp_path, packed_tar("tar", good, header(size=size), good), "damaged archive")


def test_a_broken_header_is_not_taken_for_the_end(tmp_path: Path):
    good = [header(size=1, name=f"data/{number}") + b"1" + bytes(511) for number in range(3)]
    broken = good[1].replace(b"data/1", b"data/x")  # its checksum no longer fits
    refused(tmp_path, packed_tar("tar", good[0], broken, good[2]), "damaged archive")
    refused(tmp_path, packed_tar("tar.gz", good[0], good[1][:300]), "damaged archive")
    refused(tmp_path, b"".join(good), "damaged archive")  # cut between two members


def test_a_tar_file_that_ends_in_a_zip_file_is_a_tar_file(tmp_path: Path):
    inner = archive("zip", {"data/inner": b"1"})
    (tmp_path / "a").write_bytes(archive("tar.", {"data/a.zip": inner}))
    assert [file["path"] for file in unpack(tmp_path / "a", "data", tmp_path / "out")] == ["a.zip"]


@pytest.mark.parametrize("kind", ["zip", "tar.", "tar.gz"])
def test_folders_count_as_members(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 50)
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as file:
            for number in range(51):
                file.mkdir(f"data/{number}/")
    else:
        folders = (header(tarfile.DIRTYPE, name=f"data/{number}") for number in range(51))
        content.write(packed_tar(kind.rstrip("."), *folders))
    refused(tmp_path, content.getvalue(), "more than 50 files and folders")


def test_folders_count_towards_the_ratio(tmp_path: Path):
    folders = header(tarfile.DIRTYPE, name="data/x") * 60_000
    refused(tmp_path, packed_tar("tar.gz", folders), "more than 200 times its size")


@pytest.mark.parametrize("kind", ["zip", "tar."])
def test_a_folder_that_leaves_the_folder_is_refused(kind: str, tmp_path: Path):
    content = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(content, "w") as file:
            file.mkdir("../evil")
    else:
        content.write(packed_tar("tar", header(tarfile.DIRTYPE, name="../evil")))
    refused(tmp_path, content.getvalue(), "leaves the folder")


def test_a_directory_of_a_zip_file_that_would_fill_the_memory_is_never_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(archives, "DIRECTORY_LIMIT", 100_000)
    content = archive("zip", {f"data/{number}": b"" for number in range(3000)})
    refused(tmp_path, content, "a header that is too large to be sound")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_unpacks_without_a_bound_is_refused(method: int, tmp_path: Path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        file.writestr("data/a", bytes(64 << 20))
    raw = bytearray(content.getvalue())
    for signature, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):  # it says less than it holds
        struct.pack_into("<I", raw, raw.index(signature) + offset, 1000)
    with at_most(8):
        refused(tmp_path, bytes(raw), rf"cannot be unpacked \(compression type {method}\)")


@pytest.mark.parametrize("name", ["data/a\nb", "data/\x1b]0;title\x07", "data/\u202egpj.exe", "data/a\x85b"])
@pytest.mark.parametrize("kind", ["zip", "tar."])
def test_a_name_that_a_terminal_would_obey_is_refused_and_not_repeated(kind: str, name: str, tmp_path: Path):
    refused(tmp_path, archive(kind, {name: b"1"}), "a name that no sound file has")
    with pytest.raises(SourceError) as caught:
        unpack(tmp_path / "a", "", tmp_path / "out")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["zip", "tar."])
def test_a_name_that_is_too_long_is_one_line(kind: str, tmp_path: Path):
    refused(tmp_path, archive(kind, {"data/" + "n" * 300: b"1"}), "damaged archive .*[Nn]ame too long")


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        (errno.ENOSPC, ResourceError, r"a: cannot be unpacked.*: No space left on device; free disk and run again"),
        (errno.EDQUOT, ResourceError, "quota exceeded; free disk and run again"),
        (errno.EIO, SourceError, "a: cannot be unpacked.*: Input/output error"),
        (errno.EROFS, SourceError, "Read-only file system; make its file system writable"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packing", ["zip", "tar.gz"])
def test_a_fault_of_the_disk_is_not_blamed_on_the_archive(
    packing: str, number: int, kind: type, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a").write_bytes(archive(packing, {"data/a": b"1" * 50, "data/b": b"2"}))

    class Full(io.FileIO):
        def write(self, block: bytes) -> int:
            raise OSError(number, os.strerror(number))

    real = open
    monkeypatch.setattr(
        archives,
        "open",
        lambda path, mode: Full(path, "x") if mode == "xb" else real(path, mode),
        raising=False,
    )
    with pytest.raises(kind, match=message) as caught:
        unpack(tmp_path / "a", "data", tmp_path / "out")
    assert type(caught.value) is kind
    assert "damaged" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


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


def test_a_zip_file_that_lies_about_its_size_is_refused(tmp_path: Path):
    content = bytearray(archive("zip", {"data/a": bytes(1 << 20)}))
    for signature, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        struct.pack_into("<I", content, content.index(signature) + offset, 100)
    refused(tmp_path, bytes(content), "damaged archive")


def test_a_disk_that_is_too_small_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_bytes(archive("zip", {"other": b"1" * 9000, "data/a": b"1" * 5000}))
    monkeypatch.setattr(archives, "room", lambda folder: 5000)
    unpack(tmp_path / "a", "data", tmp_path / "enough")
    monkeypatch.setattr(archives, "room", lambda folder: 4999)
    with pytest.raises(ResourceError, match=r"unpacks to 5,000 bytes or more, 4,999 are free"):
        unpack(tmp_path / "a", "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar."])
def test_names_that_stand_twice_are_refused(kind: str, tmp_path: Path):
    refused(tmp_path, archive(kind, {"data/a": b"1", "data/A": b"2"}), "stands twice")
    refused(tmp_path, archive(kind, {"data/a": b"1", "data/a/b": b"2"}), "damaged archive")


def test_damage_is_one_line(tmp_path: Path):
    whole = archive("zip", {"data/a": b"1" * 5000})
    refused(tmp_path, whole[:45] + b"\xff" * 4 + whole[49:], "damaged archive")
    refused(tmp_path, archive("tar.gz", {"data/a": b"1" * 50_000})[:-30], "damaged archive")
    refused(tmp_path, archive("tar.", {"data/a": b"1" * 50_000})[:20_000], "damaged archive")
    refused(tmp_path, b"no archive", "neither a zip nor a tar file")
    refused(tmp_path, b"", "neither a zip nor a tar file")
    refused(tmp_path, whole, r"a!/nothing: no such folder or file", "nothing")


def test_a_password_is_one_line(tmp_path: Path):
    content = bytearray(archive("zip", {"data/a": b"1" * 50}))
    for signature, offset in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        content[content.index(signature) + offset] |= 1
    refused(tmp_path, bytes(content), r"cannot be unpacked \(.*'data/a' .* is encrypted")


def test_a_dictionary_beyond_this_machine_s_memory_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    refused(tmp_path, b"PK\3\4", r"a: cannot be unpacked \(MemoryError\)")


def test_a_name_that_is_no_text_is_one_line(tmp_path: Path):
    content = archive("tar.", {"data/a": b"1"})
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        header = file.next()
    header.name = "data/\udcff"
    raw = header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + b"1" + bytes(511) + bytes(1024)
    refused(tmp_path, raw, "cannot be unpacked")
