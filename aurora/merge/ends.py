"""The tokens at which answers end, for the merged folder: without them a stock `generate` would run on."""

from collections import Counter
from pathlib import Path

from aurora.core.files import read_json, write_json
from aurora.core.parquet import read_parquet
from aurora.model.folder import read_config
from aurora.model.loading import load_tokenizer

GENERATION = "generation_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def ends_of(base: Path, rows: Path) -> frozenset[int]:
    """The tokeniser's end token, and the one in which most answers of `rows` were trained to end."""
    ends = set()
    if any((base / name).is_file() for name in TOKENIZERS):
        ends.add(load_tokenizer(base).eos_token_id)
    labels = read_parquet(rows, "format", ["labels"])["labels"].to_pylist()
    last = Counter(next((token for token in reversed(row) if token != -100), None) for row in labels)
    (token, count), *_ = last.most_common(1) or [(None, 0)]
    if 2 * count > len(labels):
        ends.add(token)
    return frozenset(ends - {None})


def write_ends(folder: Path, ends: frozenset[int]) -> None:
    """Adds `ends` to those at which generation stops; a file that names them already keeps its bytes."""
    path = folder / GENERATION
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    settings = (
        read_json(path, "fetch") if path.is_file() else {name: config[name] for name in names if config.get(name)}
    )
    known = settings.get("eos_token_id", config.get("eos_token_id"))
    known = known if isinstance(known, list) else [known] if known is not None else []
    if more := sorted(ends - set(known)):
        write_json(path, settings | {"eos_token_id": [*known, *more] if known else more})
