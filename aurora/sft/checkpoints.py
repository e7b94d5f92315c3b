"""Checkpoints of an unfinished training: whole or absent, verified before use, never taken under other inputs."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aurora.adapter.config import CONFIG
from aurora.core.code import code_hash, code_of
from aurora.core.files import flush, flush_folder, remove, replacing, sha256_file
from aurora.core.manifests import manifest_hash
from aurora.model.quantization import Quantization
from aurora.sft.params import Sft

WEIGHTS = "adapter_model.safetensors"  # PEFT's name
SUMS = "sha256.json"  # within a checkpoint: file -> SHA-256
LAYOUTS = "layouts.json"  # within a checkpoint: how the rows of a step were laid out, from which step on
LAYOUT = ("processes", "per_device_train_batch_size", "gradient_accumulation_steps")  # the same rows per step
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "torchao")


class Checkpoints:
    """The folders checkpoint-<step> below `folder`, at most `limit` of them.

    A checkpoint is written in `staging` and published by a rename once all its bytes are on the disk. The adapters of
    the steps `keep` are copied to `kept` beforehand, where no limit removes them.
    """

    def __init__(self, folder: Path, limit: int, keep: Collection[int] = ()) -> None:
        self.folder, self.limit, self.keep = folder, limit, frozenset(keep)
        self.staging, self.kept = folder / "staging", folder.parent / "kept"
        self.layouts: list[dict[str, int]] = []  # of the run so far; more than one where it went on in another

    def steps(self) -> list[int]:
        """Steps of the published checkpoints, ascending."""
        names = [path.name for path in self.folder.glob("checkpoint-*")]
        return sorted(int(found[1]) for name in names if (found := re.fullmatch(r"checkpoint-(\d+)", name)))

    def path(self, step: int) -> Path:
        """The path of the checkpoint of this step."""
        return self.folder / f"checkpoint-{step}"

    def last(self) -> Path | None:
        """The newest published checkpoint, not verified."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def take_last_whole(self) -> Path | None:
        """The newest checkpoint whose bytes are those that were written; damaged ones are named and removed."""
        remove(self.staging)
        for step in reversed(self.steps()):
            path = self.path(step)
            damage = damage_of(path)
            if damage is None:
                return path
            remove(path)
            before = [number for number in self.steps() if number < step]
            going_on = f"from step {before[-1]}" if before else "from the beginning"
            print(f"sft: {path} is damaged ({damage}); removed, going on {going_on}", file=sys.stderr)
        return None

    def publish(self, step: int) -> None:
        """Moves what `staging` holds for this step to its place, and prunes the oldest beyond the limit."""
        partial = self.staging / f"checkpoint-{step}"
        (partial / LAYOUTS).write_text(json.dumps(self.layouts), encoding="utf-8")
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sums = {path.relative_to(partial).as_posix(): sha256_file(path) for path in files}
        (partial / SUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
        flush_folder(partial)
        if step in self.keep:
            with replacing(self.kept / f"step-{step}") as copy:
                copy.mkdir()
                for name in (CONFIG, WEIGHTS):
                    shutil.copyfile(partial / name, copy / name)
                flush_folder(copy)
        remove(self.path(step))
        partial.rename(self.path(step))
        flush(self.folder)
        self.prune(self.limit)

    def prune(self, kept: int) -> None:
        """Removes all but the newest `kept` checkpoints."""
        for old in self.steps()[:-kept]:
            remove(self.path(old))


def read_layouts(checkpoint: Path) -> list[dict[str, int]]:
    """How the rows of a step were laid out up to a whole checkpoint: `from_step` and the values of LAYOUT."""
    return json.loads((checkpoint / LAYOUTS).read_text(encoding="utf-8"))


def layouts_behind(last: Path | None, sft: Sft) -> list[dict[str, int]]:
    """The layouts up to the checkpoint `last`, and the one in which `sft` goes on, where it is another."""
    found = read_layouts(last) if last else []
    layout = {name: getattr(sft, name) for name in LAYOUT}
    if found and layout.items() <= found[-1].items():
        return found
    return [*found, {"from_step": int(last.name.partition("-")[2]) if last else 0} | layout]


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a published checkpoint, or None."""
    try:
        sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
        for name, digest in sums.items():
            if sha256_file(checkpoint / name) != digest:
                return f"{name} has other bytes than were written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as error:
        return f"{SUMS} cannot be read: {error}"
    return None


def fingerprint(base: Path, rows: Path, sft: Sft, quantization: Quantization, device: str) -> str:
    """First 16 hex digits of a hash of all that a training depends on.

    That is the base (by its manifest and file sizes), the rows, the parameters, this project's code behind the
    stage, the versions of the packages that compute, and the device. Not how the rows of a step are laid out over
    processes and passes, which moves a loss by rounding alone.
    """
    files = (path for path in base.rglob("*") if path.is_file())
    sizes = sorted((path.relative_to(base).as_posix(), path.stat().st_size) for path in files)
    parts = {
        "base": [manifest_hash(base), sizes],
        "rows": [sha256_file(rows / f"{name}.parquet") for name in ("train", "held_out")],
        "sft": sft.model_dump_json(exclude={*LAYOUT, "accelerate_config"}),
        "quantization": quantization.model_dump_json(),
        "code": code_hash(*code_of("sft")),
        "versions": [_version(name) for name in PACKAGES],
        "device": device,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
