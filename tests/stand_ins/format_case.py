"""Conversations and parameters for tests of format."""

import random
from pathlib import Path

import pyarrow
import pyarrow.parquet

from aurora.core.messages import Message, Round, content_id
from aurora.format.params import Format

PARAMS = Format(prompt="mistral", max_length=256, long_conversation="continue", long_round="drop", held_out=0.2)
Row = tuple[str, tuple[Message, ...]]  # source, messages


def params(**changes: object) -> Format:
    return Format(**{**PARAMS.model_dump(), **changes})


def talk(*turns: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if index % 2 else "user", turn) for index, turn in enumerate(turns))


def many(count: int, seed: int = 0) -> list[Row]:
    """Distinct conversations of 1 to 5 rounds in two sources, some long."""
    source = random.Random(seed)
    words = ["你好", "天气", "龘", "hello ", "world ", "🙂", "\n", "。", "  "]
    rows = []
    for index in range(count):
        turns = ["".join(source.choices(words, k=source.randrange(1, 60))) for _ in range(2 * source.randrange(1, 6))]
        rows.append((source.choice(["alpaca", "sharegpt"]), talk(f"{seed} {index} {turns[0]}", *turns[1:])))
    return rows


def identity(messages: tuple[Message, ...]) -> str:
    """Content id of alternating turns."""
    texts = [message.content for message in messages]
    return content_id(tuple(map(Round, texts[::2], [*texts[1::2], ""])))


def write(
    path: Path,
    rows: list[Row],
    clusters: dict[str, str] | None = None,
    more: dict[str, tuple[pyarrow.DataType, dict]] | None = None,
) -> Path:
    """`more`: further columns, each with its type and its values by content id."""
    rows = sorted(((identity(messages), source, messages) for source, messages in rows), key=lambda row: row[:2])
    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    talks = [[{"role": turn.role, "content": turn.content} for turn in messages] for _, _, messages in rows]
    columns = {
        "id": [key for key, _, _ in rows],
        "source": [source for _, source, _ in rows],
        "position": pyarrow.array(range(len(rows)), pyarrow.int64()),
        "messages": pyarrow.array(talks, pyarrow.list_(turn)),
    }
    if clusters is not None:
        columns["cluster"] = [clusters.get(key, key) for key, _, _ in rows]
    for name, (kind, values) in (more or {}).items():
        columns[name] = pyarrow.array([values[key] for key, _, _ in rows], kind)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path
