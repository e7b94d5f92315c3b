"""The Parquet files of clean."""

from pathlib import Path

from aurora.clean.clean import Cleaned
from aurora.core.parquet import write_parquet


def write_tables(folder: Path, cleaned: Cleaned) -> None:
    """Writes conversations.parquet, sorted by id, and dropped.parquet, sorted by source and position."""
    import pyarrow

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    rows = [conversation for conversation, _cluster in cleaned.kept]
    conversations = pyarrow.table(
        {
            "id": pyarrow.array([row.id for row in rows], pyarrow.string()),
            "source": pyarrow.array([row.source for row in rows], pyarrow.string()),
            "position": pyarrow.array([row.position for row in rows], pyarrow.int64()),
            "messages": pyarrow.array(
                [[{"role": m.role, "content": m.content} for m in row.messages] for row in rows],
                pyarrow.list_(message),
            ),
            "cluster": pyarrow.array([cluster for _row, cluster in cleaned.kept], pyarrow.string()),
        }
    )
    write_parquet(folder / "conversations.parquet", conversations)
    dropped = sorted(cleaned.dropped, key=lambda outcome: (outcome.source, outcome.position))
    columns = {
        "source": [outcome.source for outcome in dropped],
        "position": [outcome.position for outcome in dropped],
        "reason": [outcome.drop.reason for outcome in dropped],
        "evidence": [outcome.drop.evidence for outcome in dropped],
    }
    types = (pyarrow.string(), pyarrow.int64(), pyarrow.string(), pyarrow.string())
    table = {
        name: pyarrow.array(values, type_)
        for (name, values), type_ in zip(columns.items(), types, strict=True)
    }
    write_parquet(folder / "dropped.parquet", pyarrow.table(table))
