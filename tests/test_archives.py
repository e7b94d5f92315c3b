"""Archives: a folder is taken, and nothing that an archive says of itself is believed."""

import io
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from aurora.errors import ResourceError, SourceError
from aurora.fetch import archives
from aurora.fetch.archives import unpack


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
    refused(tmp_path, content.getvalue(), "a link or a name")


def test_a_link_in_a_zip_file_is_refused(tmp_path: Path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        item = zipfile.ZipInfo("data/link")
        item.create_system, item.external_attr = 3, 0o120777 << 16
        file.writestr(item, "/etc/passwd")
    refused(tmp_path, content.getvalue(), "a link or a name")


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
    refused(tmp_path, content, "more than 3 files")


def test_a_zip_file_that_lies_about_its_size_is_refused(tmp_path: Path):
    content = bytearray(archive("zip", {"data/a": bytes(1 << 20)}))
    for signature, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        struct.pack_into("<I", content, content.index(signature) + offset, 100)
    refused(tmp_path, bytes(content), "damaged archive")


def test_a_disk_that_is_too_small_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").write_bytes(archive("zip", {"data/a": b"1" * 5000}))
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
    refused(tmp_path, bytes(content), "cannot be unpacked")


def test_a_name_that_is_no_text_is_one_line(tmp_path: Path):
    content = archive("tar.", {"data/a": b"1"})
    with tarfile.open(fileobj=io.BytesIO(content)) as file:
        header = file.next()
    header.name = "data/\udcff"
    raw = header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + b"1" + bytes(511) + bytes(1024)
    refused(tmp_path, raw, "cannot be unpacked")
