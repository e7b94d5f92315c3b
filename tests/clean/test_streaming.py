"""Rows that stream: the same bytes however the work is cut, and one line where disk or memory end."""

import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from stand_ins.clean_case import BENCHMARKS, CLEAN, ROOT, cleaned, put, put_benchmarks

from aurora.clean import clean, near_duplicates, read_files, row_tables
from aurora.core import parquet
from aurora.core.errors import DataError, ResourceError
from stages.clean import main

SOURCES = {"alpaca_data_zh_51k": "alpaca", "alpaca_gpt4_data_zh": "alpaca", "sharegpt_70k": "sharegpt"}
STAGE = ["--instructions", "instructions", "--benchmarks", "benchmark", "--out", "clean"]


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small profile behind fetch."""
    for name, format_ in SOURCES.items():
        put(tmp_path / "instructions", name, next((ROOT / "samples").glob(f"{name}.*")), format_)
    put_benchmarks(tmp_path / "benchmark")
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_bytes_do_not_depend_on_how_the_work_is_cut(raw: Path, monkeypatch: pytest.MonkeyPatch):
    folders = {name: raw / "instructions" / name for name in SOURCES}
    benchmarks = [raw / "benchmark" / name for name in BENCHMARKS]
    monkeypatch.setattr(parquet, "ROW_GROUP", 100)
    whole = cleaned(folders, benchmarks, CLEAN, out=raw / "whole")
    cuts = ((clean, "CHUNK", 37), (near_duplicates, "TOGETHER", 2), (row_tables, "TOGETHER", 3000))
    for place, name, size in (*cuts, (row_tables, "DROPPED", 5), (read_files, "BLOCK", 777)):
        monkeypatch.setattr(place, name, size)
    monkeypatch.setattr(clean.os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert cleaned(folders, benchmarks, CLEAN, out=raw / "cut") == whole
    assert {"near_duplicate", "exact_duplicate"} <= set(whole.metrics["total"]["dropped"])
    for path in sorted((raw / "whole").iterdir()):
        assert path.read_bytes() == (raw / "cut" / path.name).read_bytes(), path.name


def test_row_groups_are_those_of_one_table(tmp_path: Path):
    chance = random.Random(3)
    rows = [{"text": "字" * chance.randrange(9), "parts": [{"n": chance.randrange(5)}] * chance.randrange(4)} for _ in range(20000)]  # fmt: skip
    table = pyarrow.Table.from_pylist(rows)
    settings = {"compression": "zstd", "compression_level": 3, "row_group_size": 8192}
    pyarrow.parquet.write_table(table, tmp_path / "pyarrow", **settings)
    parquet.write_parquet(tmp_path / "pieces", (table.slice(at, 777) for at in range(0, 20000, 777)))
    parquet.write_parquet(tmp_path / "whole", table)
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "pyarrow").read_bytes()
    parquet.write_parquet(tmp_path / "groups", table.slice(0, 16384))
    assert pyarrow.parquet.ParquetFile(tmp_path / "groups").num_row_groups == 2
    parquet.write_parquet(tmp_path / "empty", table.slice(0, 0))
    assert pyarrow.parquet.read_table(tmp_path / "empty").schema == table.schema


VALUES = [12345, -0.5e-10, "字\\\" ,]}\u2028🏃", "", None, True, {"a": [{"b": [1, [2]]}, {}], "": "\n"}, 10**30, "\ud800", [], "x" * 300]  # fmt: skip


@pytest.mark.parametrize("block", [4, 7, 64])
@pytest.mark.parametrize("indent", [None, 3])
@pytest.mark.parametrize("escaped", [True, False])
def test_a_list_is_read_as_json_reads_it(tmp_path: Path, block: int, indent: int | None, escaped: bool, monkeypatch):
    monkeypatch.setattr(read_files, "BLOCK", block)
    values = VALUES if escaped else [value for value in VALUES if value != "\ud800"]
    text = json.dumps(values, ensure_ascii=escaped, indent=indent)
    (tmp_path / "rows").write_bytes(b"\xef\xbb\xbf \r\n" + text.encode())
    assert list(read_files.read_items(tmp_path / "rows")) == values
    several = "\n".join(json.dumps(value, indent=2) for value in [{"a": 1}, {"b": "字" * 9}, {}])
    (tmp_path / "rows").write_text(several)
    assert list(read_files.read_items(tmp_path / "rows")) == [{"a": 1}, {"b": "字" * 9}, {}]


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
def test_the_place_of_a_fault_does_not_depend_on_blocks(tmp_path: Path, block: int, monkeypatch):
    monkeypatch.setattr(read_files, "BLOCK", block)
    path = tmp_path / "rows"
    for content, place in (
        (b'[\n {"a": "1"},\n {"b": x}\n]', "row 1 \\(line 3 column 8\\): not JSON"),
        (b'[{"a": "1"}, {"b": 2 "c"}]' + b" " * 99, "row 1 \\(line 1 column 22\\)"),
        (b'[{"a": "1"},\n {"b": "2', "row 1 \\(line 2 column 8\\): not JSON \\(Unterminated string"),
        (b'[{"a": "1"}\n\n', "line 3: the JSON list is cut off or broken behind row 0"),
        ('[{"a": "字'.encode()[:-1], "byte 8: the file is cut off within a character"),
        (b'[{"a": "\xff"}]', "byte 8: not UTF-8"),
        (b"[1] []", "text behind the end of the JSON list: '\\["),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=place):
            list(read_files.read_items(path))


def test_one_long_line_is_not_held_whole(tmp_path: Path):
    class Counted(io.BytesIO):
        most = 0

        def read(self, size: int = -1) -> bytes:
            assert 0 < size <= 4 * read_files.BLOCK
            return super().read(size)

    text = b"[" + b",".join([b'{"a": "' + b"x" * 1000 + b'"}'] * 5000) + b"]"
    rows = read_files._values(read_files.JsonText(tmp_path, Counted(text), b"", 0))
    assert sum(len(row["a"]) for row in rows) == 5_000_000


def lines(result) -> list[str]:
    assert "Traceback" not in result.output
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def test_a_full_disk_is_one_line_and_leaves_nothing(raw: Path):
    """A file may not outgrow 4 KB, so that the rows do not fit."""
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, 1 << 12));"
        "sys.argv[1:] = " + repr(STAGE) + "; from stages.clean import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "the disk is full" in line and "run dvc repro again" in line
    assert sorted(path.name for path in raw.iterdir()) == ["benchmark", "instructions", "params.yaml"]


def test_too_small_a_disk_is_refused_before_a_row_is_read(raw: Path, monkeypatch: pytest.MonkeyPatch):
    class Usage(NamedTuple):
        free: int = 100_000

    monkeypatch.setattr(clean.shutil, "disk_usage", lambda _: Usage())
    monkeypatch.setattr(clean, "read_items", None)
    (line,) = lines(CliRunner().invoke(main, STAGE))
    assert "takes up to 0.0" in line and "free some" in line
    assert not (raw / "clean").exists()


def die(*_: object) -> None:
    os._exit(9)


def test_a_dead_process_is_one_line(raw: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clean, "CHUNK", 100)
    monkeypatch.setattr(clean, "_store", die)
    monkeypatch.setattr(clean.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    folders = {name: raw / "instructions" / name for name in SOURCES}
    with pytest.raises(ResourceError, match="was ended from outside"):
        cleaned(folders, [], CLEAN.model_copy(update={"contamination": None}))


def test_what_a_killed_run_left_goes(raw: Path):
    (raw / ".clean.rows").mkdir()
    (raw / ".clean.rows/band_00").write_bytes(b"left")
    result = CliRunner().invoke(main, STAGE)
    assert result.exit_code == 0, result.output
    assert not (raw / ".clean.rows").exists()
    assert "GB are free" in result.stderr
