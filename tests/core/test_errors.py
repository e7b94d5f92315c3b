"""A mistake and a lack of memory are one line at the edge of a command; a defect keeps its traceback."""

import errno
import re
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from aurora.core.errors import DataError, exit_with_message


def card() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (card, r"CUDA out of memory\. Tried to allocate 2\.00 GiB\."),
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), r".*can't allocate memory: you tried to allocate.*"),
        (lambda: bytes(1 << 62), "Python's own"),
    ],
    ids=["card", "host", "python"],
)
def test_a_lack_of_memory_is_one_line(function: Callable, reason: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="1"):
        exit_with_message(function)()
    said = capsys.readouterr().err
    pattern = rf"error: memory ran out \({reason}\); `aurora plan` shows what a training needs and what to lower in"
    assert re.match(pattern, said) and said.count("\n") == 1, said


def test_a_full_disk_is_one_line_wherever_it_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def wrapped() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "rows.arrow")
        except OSError as error:
            raise ValueError("An error occurred while generating the dataset") from error

    def safetensors() -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def limited() -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            (tmp_path / "large").write_bytes(bytes(1000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    for function in (wrapped, safetensors, limited):
        with pytest.raises(SystemExit, match="1"):
            exit_with_message(function)()
        said = capsys.readouterr().err
        assert re.fullmatch(r"error: the disk is full \(.+\); free some space and run dvc repro again\n", said)


def test_a_mistake_is_one_line_and_a_defect_is_none(capsys: pytest.CaptureFixture[str]):
    def mistake() -> None:
        raise DataError("row 3:\n  empty")

    def defect() -> None:
        raise RuntimeError("never")

    with pytest.raises(SystemExit, match="1"):
        exit_with_message(mistake)()
    assert capsys.readouterr().err == "error: row 3: empty\n"
    with pytest.raises(RuntimeError, match="never"):
        exit_with_message(defect)()
