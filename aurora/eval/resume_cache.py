"""What an unfinished evaluation has already computed, so that a killed run goes on and ends in the same bytes."""

import hashlib
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from aurora.core.code import code_hash, code_of
from aurora.core.files import sha256_file
from aurora.core.manifests import MANIFEST

SCRATCH = Path(".aurora/eval")  # ignored by git and DVC
VERSIONS = ("torch", "transformers", "bitsandbytes", "lm-eval")


class ResumeCache:
    """Answers by key, in one file for each model, setting, package version and device.

    A key names everything else that an answer depends on: the tokens of the pass and of the passes before it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, isolation_level=None)
        # Survives a killed process without a wait for the disk at each pass.
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=OFF")
        self._database.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB)")

    def get(self, key: bytes) -> bytes | None:
        """The remembered value, or None."""
        found = self._database.execute("SELECT value FROM answers WHERE key = ?", (key,)).fetchone()
        return found[0] if found else None

    def put(self, key: bytes, value: bytes) -> None:
        """Remembers a value at once."""
        self._database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, value))

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM answers").fetchone()[0]

    def close(self) -> None:
        """Closes the file and keeps it."""
        self._database.close()

    def forget(self) -> None:
        """Removes the file, once its answers stand in the outputs."""
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def open_resume_cache(digest: str, settings: dict, folder: Path = SCRATCH) -> ResumeCache:
    """The memory of the model with these bytes (`digest_of`), these settings, package versions and device."""
    return ResumeCache(folder / f"{fingerprint(digest, settings)}.sqlite")


def digest_of(model: Path) -> str:
    """SHA-256 in hex over the names and bytes of every file of a model folder, its manifest excepted."""
    files = sorted(path for path in model.rglob("*") if path.is_file() and path.name != MANIFEST)
    with ThreadPoolExecutor(4) as pool:  # hashing releases the interpreter's lock
        digests = list(pool.map(sha256_file, files))
    parts = [
        [path.relative_to(model).as_posix(), digest] for path, digest in zip(files, digests, strict=True)
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
        block = (
            part
            if isinstance(part, bytes)
            else part.tobytes()
            if hasattr(part, "tobytes")
            else repr(part).encode()
        )
        digest.update(len(block).to_bytes(8, "little"))
        digest.update(block)
    return digest.digest()
