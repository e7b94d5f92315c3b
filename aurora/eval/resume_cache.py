"""What an unfinished evaluation has already computed, so that a killed run goes on and ends in the same bytes."""

import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from aurora.core.code import code_hash, code_of
from aurora.core.errors import ResourceError
from aurora.core.files import file_digests, folder_hash, remove
from aurora.core.manifests import MANIFEST
from aurora.core.recorded import keep_until_recorded, require_recorded
from aurora.eval.group import Group

SCRATCH = Path(".aurora/eval")  # ignored by git and DVC
# SQLite's words where the file is whole, but cannot be written or read now.
WHOLE = ("database or disk is full", "disk I/O error", "unable to open", "attempt to write", "database is locked")
VERSIONS = ("torch", "transformers", "bitsandbytes", "lm-eval")


class ResumeCache:
    """Answers by key, in one file for each model, setting, package version and device.

    A key names everything else that an answer depends on: the tokens of the pass and of the passes before it. A digest
    beside each answer covers both. What is damaged counts as not computed yet; a damaged file begins anew. Raises
    ResourceError where the disk takes no more.
    """

    def __init__(self, path: Path, group: Group | None = None) -> None:
        self.path, self.group = path, group or Group()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)

    def _open(self) -> None:
        self._database = sqlite3.connect(self.path, isolation_level=None)
        # Whole after a power cut, which may cost the last passes, without a wait for the disk at each pass.
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB, digest BLOB)")

    def _begin_anew(self, error: sqlite3.DatabaseError) -> None:
        """Removes a damaged file. Raises ResourceError where the file is whole, but the disk is not."""
        if str(error).startswith(WHOLE):
            raise ResourceError(
                f"{self.path}: {error}; free some disk, or give yourself the right to it, and run dvc repro again"
            ) from None
        print(f"eval: {self.path} is damaged ({error}); what it held is computed again", file=sys.stderr)
        self.close()
        self._remove()
        self._open()

    def get(self, key: bytes) -> bytes | None:
        """The remembered value; None where there is none, or it is not the one that was put."""
        try:
            found = self._database.execute("SELECT value, digest FROM answers WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)
            return None
        return found[0] if found and found[1] == _digest(key, found[0]) else None

    def put(self, key: bytes, value: bytes) -> None:
        """Remembers a value at once."""
        row = (key, value, _digest(key, value))
        try:
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
        except sqlite3.DatabaseError as error:
            self._begin_anew(error)
            self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)

    def take(self, path: Path) -> None:
        """Takes over what another process, now gone, has remembered, and removes its file."""
        other = ResumeCache(path)
        for key, value, digest in other._database.execute("SELECT key, value, digest FROM answers"):
            if digest == _digest(key, value):
                self.put(key, value)
        other.close()
        other._remove()

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM answers").fetchone()[0]

    def close(self) -> None:
        """Closes the file and keeps it."""
        self._database.close()

    def forget(self) -> None:
        """Keeps the first process's file until dvc.lock names the outputs that hold its answers, and no longer."""
        self.close()
        if self.group.rank:
            self._remove()
        else:
            keep_until_recorded(self.path)

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            remove(self.path.with_name(self.path.name + suffix))


def _digest(key: bytes, value: object) -> bytes:
    data = value if isinstance(value, bytes) else repr(value).encode()  # SQLite gives a damaged type as another
    return hashlib.blake2b(data, key=key[:64], digest_size=16).digest()


def open_resume_cache(digest: str, settings: dict, folder: Path = SCRATCH) -> ResumeCache:
    """The memory of the model with these bytes (`digest_of`), these settings, package versions and device.

    Each process has a file; the first takes over those that an earlier run of more processes left.
    """
    name, group = fingerprint(digest, settings), Group()
    if group.rank:
        group.gather({})
        return ResumeCache(folder / f"{name}.{group.rank}.sqlite", group)
    memory = ResumeCache(folder / f"{name}.sqlite", group)
    for path in sorted(folder.glob(f"{name}.*.sqlite")):
        memory.take(path)
    group.gather({})
    return memory


def computed(
    memory: ResumeCache | None,
    keys: Sequence[bytes],
    costs: Sequence[int],
    compute: Callable[[list[int]], Iterable[tuple[int, bytes]]],
) -> list[bytes]:
    """The value of each key: remembered, or computed by one of the processes and remembered at once.

    `compute` gives the values of the numbers that it is given, one by one; `costs` shares the numbers out.
    """
    if memory is None:
        return [value for _, value in sorted(compute(list(range(len(costs)))))]
    found = {number: value for number, key in enumerate(keys) if (value := memory.get(key)) is not None}
    found = memory.group.gather(found)
    missing = {number: cost for number, cost in enumerate(costs) if number not in found}
    own = {}
    for number, value in compute(memory.group.share(missing)):
        memory.put(keys[number], value)
        own[number] = value
    others = memory.group.gather(own)
    if not memory.group.rank:
        for number in others.keys() - own.keys():
            memory.put(keys[number], others[number])
    return [(found | others)[number] for number in range(len(keys))]


def digest_of(model: Path) -> str:
    """SHA-256 in hex over the names and bytes of every file of a model folder, its manifest excepted.

    Raises DataError where they are not the bytes that dvc.lock records.
    """
    files = sorted(path for path in model.rglob("*") if path.is_file())
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        digests = list(pool.map(file_digests, files))
    names = [path.relative_to(model).as_posix() for path in files]
    require_recorded(model, folder_hash(dict(zip(names, (md5 for _, md5 in digests), strict=True))))
    parts = [
        [name, sha256] for name, path, (sha256, _) in zip(names, files, digests, strict=True) if path.name != MANIFEST
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def fingerprint(digest: str, settings: dict) -> str:
    """32 hex digits over a model's digest, the settings, versions and device."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    parts = {
        "model": digest,
        "settings": settings,
        "versions": [version(name) for name in VERSIONS],
        "code": code_hash(*code_of("eval")),
        "device": [device, torch.get_num_threads()],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def key_of(*parts: object) -> bytes:
    """A key over arrays, bytes and plain values."""
    digest = hashlib.sha256()
    for part in parts:
        block = part if isinstance(part, bytes) else part.tobytes() if hasattr(part, "tobytes") else repr(part).encode()
        digest.update(len(block).to_bytes(8, "little"))
        digest.update(block)
    return digest.digest()
