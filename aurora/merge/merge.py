"""LoRA into a sharded safetensors checkpoint, one tensor or expert at a time: W + (alpha / r) * B A, rounded once.

A merged shard is the base's shard with other bytes in the places of the adapted tensors: header, order, names and
types stay, so that whatever loads the base loads the merged folder. What does not change is shared with the base
where the file system can (reflink, else hard link of whole shards), and copied by the kernel where it cannot.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from aurora.adapter.record import check_base
from aurora.core.code import code_hash, code_of
from aurora.core.errors import AuroraError, ModelError, ResourceError
from aurora.core.files import sha256_file
from aurora.core.manifests import MANIFEST
from aurora.merge.copy_bytes import copy_range, disk_errors, hard_link, reflink, ways_to_share, write_all
from aurora.merge.deltas import Change, Delta, FusedDelta, Replacement, read_deltas
from aurora.merge.ends import write_ends
from aurora.merge.resumable import discarding, resuming, whole
from aurora.merge.shards import FLOATS, as_bytes, read_tensor
from aurora.model.folder import INDEX, METHOD, TensorInfo, read_config, read_shards, refuse_foreign_quantization

if TYPE_CHECKING:
    import torch

# Weights in other forms, which are the unmerged model, and pickles, which can run code when they are read.
WEIGHTS = (".safetensors", ".gguf", ".h5", ".msgpack", ".onnx", ".ot")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
OWN = (MANIFEST, "README.md")  # of the base's folder; the merged one is another model


@dataclass
class Work:
    """What the shards of one merge share, and what the log says of the way their bytes took.

    The counts depend on the file system and are no metric.
    """

    deltas: dict[str, Change]
    advance: Callable[[int], object]  # called with each count of bytes that is done
    merged: int = 0
    reflinked: int = 0
    linked: int = 0
    copied: int = 0
    kept: int = 0
    written: int = 0  # bytes


def merge(
    base: Path,
    adapter: Path,
    out: Path,
    measure: Callable[[Path], dict] = lambda folder: {},
    ends: frozenset[int] = frozenset(),
) -> dict:
    """Writes `base` with `adapter` added as a Hugging Face folder and returns counts for the metrics.

    Sums in float32 and rounds once to the base's dtype; holds one tensor and its delta at a time. A run that was
    interrupted goes on from the shards that are whole. Raises ModelError for an adapter or base that do not fit,
    ResourceError for a disk that is too small; then nothing is left behind. What
    `measure` finds about the whole folder, before it gets its name, joins the metrics. Where `measure` fails, the
    shards are kept, and the next run goes on from there. `ends` are tokens at which an answer ends: the folder's
    generation_config.json names them too.
    """
    _refuse_overlap(out, (base, adapter))
    shards = _mergeable(base)
    deltas = read_deltas(adapter, base)
    if not check_base(adapter, base):
        print("merge: no hash of the adapter's base to compare; names and shapes are", file=sys.stderr)
    _check_fit(base, adapter, shards, deltas)
    changed = {shard for shard, places in shards.items() if any(name in deltas for name in places)}
    largest = 0.0
    with disk_errors(out), resuming(out, _inputs(base, adapter, shards, ends)) as scratch:
        with discarding(scratch):
            _check_disk(base, scratch, shards, changed, deltas)
            total = sum((base / shard).stat().st_size for shard in shards)
            with tqdm(total=total, desc="merge", unit="B", unit_scale=True) as bar:
                work = Work(deltas, bar.update)
                for shard, places in shards.items():
                    largest = max(largest, _take(base / shard, scratch / shard, places, work))
            _take_companions(base, scratch)
            write_ends(scratch, ends)
        print(
            f"merge: {work.written:,} bytes written; shards: {work.merged} merged"
            f" ({work.reflinked} of them as reflinks), {work.linked} shared with the base,"
            f" {work.copied} copied, {work.kept} found whole",
            file=sys.stderr,
        )
        measured = _measured(measure, scratch)
    return {
        "shards": len(shards),
        "shards_changed": len(changed),
        "tensors": sum(len(places) for places in shards.values()),
        "tensors_changed": len(deltas),
        "largest_delta": largest,
        **measured,
    }


def _measured(measure: Callable[[Path], dict], scratch: Path) -> dict:
    # The merge may have taken hours, and a failure here is none of its own.
    try:
        return measure(scratch)
    except (AuroraError, OSError) as error:
        kind = type(error) if isinstance(error, AuroraError) else ResourceError
        raise kind(f"{error}; what is merged is kept in {scratch}, and the next run measures it") from error


def _refuse_overlap(out: Path, inputs: tuple[Path, ...]) -> None:
    # The folder `out` is replaced whole; one that holds an input, or is inside one, would remove it.
    target = out.resolve()
    for folder in inputs:
        source = folder.resolve()
        if target == source or target in source.parents or source in target.parents:
            raise ModelError(f"{out}: would replace {folder}, from which it is merged; name another folder to write")


def _mergeable(base: Path) -> dict[str, dict[str, TensorInfo]]:
    if (base / "config.json").is_file():
        config = read_config(base)
        refuse_foreign_quantization(base, config)
        if (config.get("quantization_config") or {}).get("quant_method") == METHOD:
            raise ModelError(f"{base}: packed in 4 bits; merge into the 16-bit model it was packed from")
    return read_shards(base)


def _check_fit(base: Path, adapter: Path, shards: dict[str, dict[str, TensorInfo]], deltas: dict[str, Change]) -> None:
    places = {name: place for shard in shards.values() for name, place in shard.items()}
    for name, delta in deltas.items():
        if name not in places:
            raise ModelError(f"{adapter}: {name} is not a tensor of {base}; was the adapter trained on it?")
        place = places[name]
        if delta.shape != place.shape:
            raise ModelError(
                f"{adapter}: adds {delta.shape} to {name}, which is {place.shape}; it was trained on another base"
            )
        if place.dtype not in FLOATS:
            raise ModelError(f"{base}: {name} is {place.dtype}, to which nothing can be added; take the 16-bit model")


def _inputs(base: Path, adapter: Path, shards: dict[str, dict[str, TensorInfo]], ends: frozenset[int]) -> list:
    """All that the merged bytes depend on, as JSON: what an interrupted run may be finished by."""
    import torch

    stats = [(path, path.stat()) for path in sorted(base.rglob("*")) if path.is_file()]
    return [
        [(path.relative_to(base).as_posix(), stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats],
        [(path.name, sha256_file(path)) for path in sorted(adapter.iterdir()) if path.is_file()],
        code_hash(*code_of("merge")),
        [torch.__version__, torch.get_num_threads(), sorted(shards), sorted(ends)],
    ]


def _companions(base: Path) -> Iterator[Path]:
    """Configuration, tokeniser, licence, the index, and whatever else is neither a weight nor an index of others."""
    for path in sorted(base.rglob("*")):
        relative = path.relative_to(base)
        hidden = any(part.startswith(".") for part in relative.parts)
        weights = path.suffix.lower() in WEIGHTS + PICKLES
        foreign = ".index." in path.name and relative.as_posix() != INDEX
        if path.is_file() and not (hidden or weights or foreign or relative.as_posix() in OWN):
            yield path


def _take_companions(base: Path, scratch: Path) -> None:
    for path in _companions(base):
        target = scratch / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _take(source: Path, target: Path, places: dict[str, TensorInfo], work: Work) -> float:
    """Brings one shard to `target`; returns the largest absolute element of its deltas."""
    size = source.stat().st_size
    adapted = {name: place for name, place in places.items() if name in work.deltas}
    if target.is_file() and target.stat().st_size == size:
        work.kept += 1
        work.advance(size)
        return max((_largest(name, work.deltas[name]) for name in adapted), default=0.0)
    if adapted:
        with whole(target) as partial:
            largest = _merge_shard(source, partial, adapted, work)
        work.merged += 1
        return largest
    with whole(target) as partial:
        if reflink(source, partial) or hard_link(source, partial):
            work.linked += 1
            work.advance(size)
        else:
            work.copied += 1
            work.written += size
            with source.open("rb", 0) as reader, partial.open("wb", 0) as writer:
                copy_range(reader, writer, 0, size, work.advance)
    return 0.0


def _merge_shard(source: Path, target: Path, adapted: dict[str, TensorInfo], work: Work) -> float:
    largest, size = 0.0, source.stat().st_size
    shared = reflink(source, target)
    work.reflinked += shared
    with source.open("rb", 0) as reader, target.open("r+b" if shared else "wb", 0) as writer:
        done = 0
        for name, place in adapted.items():  # in the order of their bytes
            if not shared:
                copy_range(reader, writer, done, place.begin, work.advance)
            weight = read_tensor(reader, place)
            largest = max(largest, _apply(name, weight, work.deltas[name]))
            write_all(writer, as_bytes(weight), place.begin)
            done = place.end
            work.advance(place.end - place.begin)
        if shared:
            work.advance(size - sum(place.end - place.begin for place in adapted.values()))
        else:
            copy_range(reader, writer, done, size, work.advance)
    work.written += sum(place.end - place.begin for place in adapted.values()) if shared else size
    return largest


def _update(name: str, delta: Delta) -> tuple["torch.Tensor", float]:
    """scale * B @ A in float32, of the base's shape, and its largest absolute element."""
    import torch

    update = (delta.b() @ delta.a()).mul_(delta.scale)
    update = update.t() if delta.transposed else update
    low, high = (value.item() for value in torch.aminmax(update))
    largest = max(-low, high)
    if not largest < float("inf"):  # NaN too
        raise ModelError(f"{name}: the adapter's delta is not finite; train again with a lower rate")
    return update, largest


def _largest(name: str, change: Change) -> float:
    """The largest absolute element that a change adds; of a tensor that is replaced none is known without the base."""
    parts = change.experts if isinstance(change, FusedDelta) else [change]
    return max((_update(name, part)[1] for part in parts if isinstance(part, Delta)), default=0.0)


def _apply(name: str, weight: "torch.Tensor", change: Change) -> float:
    """Changes `weight` in place; one copy of it and the float32 delta, of a single expert, are all that is held."""
    import torch

    if isinstance(change, Replacement):
        largest = 0.0
        weight.copy_(change.tensor())
    elif isinstance(change, FusedDelta):
        pairs = zip(weight, change.experts, strict=True)
        largest = max(_add(name, matrix, delta) for matrix, delta in pairs)
    else:
        largest = _add(name, weight, change)
    low, high = (abs(value.item()) for value in torch.aminmax(weight))
    if not max(low, high) < float("inf"):
        raise ModelError(
            f"{name}: base and delta together are not finite in {weight.dtype}; the base is damaged or the rate too high"
        )
    return largest


def _add(name: str, weight: "torch.Tensor", delta: Delta) -> float:
    update, largest = _update(name, delta)
    update = update.add_(weight)
    if delta.magnitude is not None:  # each row is brought to its trained length
        update.mul_((delta.magnitude() / update.norm(dim=1)).unsqueeze(1))
    weight.copy_(update)  # rounds here, and nowhere else
    return largest


def _check_disk(base: Path, scratch: Path, shards: dict, changed: set[str], deltas: dict[str, Change]) -> None:
    """Raises ResourceError, before anything is written, where the disk will not hold what cannot be shared."""
    smallest = min((base / shard for shard in shards), key=lambda path: path.stat().st_size)
    clones, links = ways_to_share(smallest, scratch / "probe.partial")
    needed = sum(path.stat().st_size for path in _companions(base))
    for shard, places in shards.items():
        size = (base / shard).stat().st_size
        if (scratch / shard).is_file() or (links and shard not in changed):
            continue
        adapted = sum(place.end - place.begin for name, place in places.items() if name in deltas)
        needed += adapted if clones else size
    free = shutil.disk_usage(scratch).free
    if needed > free:
        raise ResourceError(
            f"{scratch.parent}: the merge needs {needed / 2**30:.2f} GiB but the disk has {free / 2**30:.2f} GiB free;"
            " make room first"
        )
