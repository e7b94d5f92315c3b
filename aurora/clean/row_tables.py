"""The Parquet files of clean."""

from collections.abc import Mapping
from pathlib import Path

from aurora.clean.clean import Cleaned
from aurora.core.parquet import write_parquet


def write_tables(folder: Path, cleaned: Cleaned, repeats: Mapping[str, int] | None = None) -> None:
    """Writes conversations.parquet, sorted by id, and dropped.parquet, sorted by source and position.

    Columns that few data sets need are in conversations.parquet where a row fills them: `system`; `train`, whether
    each round's answer is trained; `steps`, the tool calls between each round's prompt and answer; `tools`; `repeat`,
    how many times the row is trained, by source in `repeats`.
    """
    import pyarrow

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    rows = [conversation for conversation, _cluster in cleaned.kept]
    text = pyarrow.string()
    columns = {
        "id": pyarrow.array([row.id for row in rows], text),
        "source": pyarrow.array([row.source for row in rows], text),
        "position": pyarrow.array([row.position for row in rows], pyarrow.int64()),
        "messages": pyarrow.array(
            [
                [
                    {"role": role, "content": content}
                    for each in row.rounds
                    for role, content in zip(("user", "assistant"), each[:2], strict=True)
                ]
                for row in rows
            ],
            pyarrow.list_(message),
        ),
        "cluster": pyarrow.array([cluster for _row, cluster in cleaned.kept], text),
    }
    if any(row.system for row in rows):
        columns["system"] = pyarrow.array([row.system for row in rows], text)
    if any(not each.train for row in rows for each in row.rounds):
        trained = [[each.train for each in row.rounds] for row in rows]
        columns["train"] = pyarrow.array(trained, pyarrow.list_(pyarrow.bool_()))
    if any(each.steps for row in rows for each in row.rounds):
        steps = [[each.steps for each in row.rounds] for row in rows]
        columns["steps"] = pyarrow.array(steps, pyarrow.list_(text))
        columns["tools"] = pyarrow.array([row.tools for row in rows], text)
    if repeats and any(repeats.get(row.source, 1) > 1 for row in rows):
        columns["repeat"] = pyarrow.array([repeats.get(row.source, 1) for row in rows], pyarrow.int32())
    write_parquet(folder / "conversations.parquet", pyarrow.table(columns))
    write_dropped(folder / "dropped.parquet", cleaned)


def write_dropped(path: Path, cleaned: Cleaned) -> None:
    """Writes the dropped rows, sorted by source and position, each with reason and evidence."""
    import pyarrow

    dropped = sorted(cleaned.dropped, key=lambda outcome: (outcome.source, outcome.position))
    drops = [outcome.drop for outcome in dropped if outcome.drop]
    columns = {
        "source": [outcome.source for outcome in dropped],
        "position": [outcome.position for outcome in dropped],
        "reason": [drop.reason for drop in drops],
        "evidence": [drop.evidence for drop in drops],
    }
    types = (pyarrow.string(), pyarrow.int64(), pyarrow.string(), pyarrow.string())
    table = {
        name: pyarrow.array(values, type_)
        for (name, values), type_ in zip(columns.items(), types, strict=True)
    }
    write_parquet(path, pyarrow.table(table))
