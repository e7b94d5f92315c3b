"""What an evaluation remembers is what it has computed, or is computed again."""

import resource
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aurora.core.errors import ResourceError
from aurora.eval.group import Group
from aurora.eval.resume_cache import ResumeCache, computed, fingerprint, open_resume_cache

PAGE = 4096


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A file with 100 answers of 1,000 bytes."""
    cache = ResumeCache(tmp_path / "answers.sqlite")
    for number in range(100):
        cache.put(bytes([number]), bytes([number]) * 1000)
    cache.close()
    return tmp_path / "answers.sqlite"


def test_values_come_back(filled: Path):
    cache = ResumeCache(filled)
    assert len(cache) == 100 and all(cache.get(bytes([n])) == bytes([n]) * 1000 for n in range(100))
    assert cache.get(b"none") is None


def test_a_flipped_bit_of_a_value_is_computed_again(filled: Path):
    data = bytearray(filled.read_bytes())
    data[data.index(bytes([55]) * 900) + 450] ^= 1
    filled.write_bytes(data)
    cache = ResumeCache(filled)
    assert [n for n in range(100) if cache.get(bytes([n])) != bytes([n]) * 1000] == [55]
    assert cache.get(bytes([55])) is None
    cache.put(bytes([55]), b"again")
    assert cache.get(bytes([55])) == b"again"


def test_a_value_of_another_key_is_none(filled: Path):
    with sqlite3.connect(filled) as database:
        database.execute("UPDATE answers SET value = (SELECT value FROM answers WHERE key = x'01') WHERE key = x'02'")
        database.execute("UPDATE answers SET digest = (SELECT digest FROM answers WHERE key = x'01') WHERE key = x'02'")
    assert ResumeCache(filled).get(bytes([2])) is None


@pytest.mark.parametrize("place", range(0, 25 * PAGE, PAGE))
def test_a_damaged_file_gives_right_values_or_none(filled: Path, place: int, capsys: pytest.CaptureFixture[str]):
    data = bytearray(filled.read_bytes())
    data[place : place + 512] = b"\xff" * len(data[place : place + 512])
    filled.write_bytes(data)
    cache = ResumeCache(filled)
    assert all(cache.get(bytes([n])) in (bytes([n]) * 1000, None) for n in range(100))
    cache.put(b"new", b"value")
    assert cache.get(b"new") == b"value"
    if place == 0:
        assert "is damaged (file is not a database); what it held is computed again" in capsys.readouterr().err


def test_another_file_of_that_name_begins_anew(tmp_path: Path):
    (tmp_path / "answers.sqlite").write_text("no database " * 100)
    cache = ResumeCache(tmp_path / "answers.sqlite")
    cache.put(b"key", b"value")
    assert cache.get(b"key") == b"value"


def test_a_full_disk_is_one_line(filled: Path):
    cache = ResumeCache(filled)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"answers\.sqlite: .*; free some disk") as caught:
            cache.put(b"large", bytes(10**6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)


def test_what_was_written_survives_a_power_cut(tmp_path: Path):
    cache = ResumeCache(tmp_path / "answers.sqlite")
    (mode,) = cache._database.execute("PRAGMA synchronous").fetchone()
    assert mode == 1  # NORMAL: in WAL mode a cut costs the last answers, and damages nothing


class Threads:
    """Threads in the place of processes."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[dict]) -> None:
        self.rank, self.size, self.barrier, self.board = rank, size, barrier, board

    def gather(self, values: dict[int, bytes]) -> dict[int, bytes]:
        self.board[self.rank] = values
        self.barrier.wait()
        found = {key: value for part in self.board for key, value in part.items()}
        self.barrier.wait()
        return found

    share = Group.share


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_value_is_computed_by_one_process_and_all_have_it(tmp_path: Path, size: int):
    keys, costs = [bytes([number]) for number in range(40)], [1 + number % 7 for number in range(40)]
    barrier, board = threading.Barrier(size), [{}] * size
    done: list[list[int]] = [[] for _ in range(size)]

    def work(rank: int) -> list[bytes]:
        memory = ResumeCache(tmp_path / f"{rank}.sqlite", Threads(rank, size, barrier, board))
        for number in range(rank, 40, 5):  # each remembers some of an earlier run
            memory.put(keys[number], b"known")

        def compute(numbers: list[int]) -> Iterator[tuple[int, bytes]]:
            for number in numbers:
                done[rank].append(number)
                yield number, b"%d" % number

        return computed(memory, keys, costs, compute)

    with ThreadPoolExecutor(size) as pool:
        found = list(pool.map(work, range(size)))
    known = {number for rank in range(size) for number in range(rank, 40, 5)}
    assert found == [[b"known" if number in known else b"%d" % number for number in range(40)]] * size
    assert sorted(number for part in done for number in part) == sorted(set(range(40)) - known)
    loads = [sum(costs[number] for number in part) for part in done]
    assert max(loads) - min(loads) <= 2 * max(costs)
    first = ResumeCache(tmp_path / "0.sqlite")
    assert all(first.get(key) is not None for number, key in enumerate(keys) if number not in known)


def test_the_first_takes_over_what_others_left(tmp_path: Path):
    name = fingerprint("model", {})
    other = ResumeCache(tmp_path / f"{name}.1.sqlite")
    other.put(b"key", b"value")
    other.close()
    memory = open_resume_cache("model", {}, tmp_path)
    assert memory.get(b"key") == b"value"
    assert [path.name for path in tmp_path.glob("*.sqlite")] == [f"{name}.sqlite"]
