"""The Parquet files of clean."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aurora.clean.row_store import RowStore
from aurora.core.parquet import write_parquet

if TYPE_CHECKING:
    import pyarrow

TOGETHER = 1 << 25  # characters of rows that are gathered at a time
DROPPED = 8192  # dropped rows, whose evidence is short


def write_conversations(path: Path, store: RowStore, rows: np.ndarray, repeats: Mapping[str, int]) -> None:
    """Writes the kept `rows`, which are sorted by id.

    Columns that few data sets need are in the file where a row fills them: `system`; `train`, whether each round's
    answer is trained; `steps`, the tool calls between each round's prompt and answer; `tools`; `repeat`, how many
    times the row is trained, by source in `repeats`.
    """
    kept = store.facts[rows]
    optional = {"system": ["system"], "untrained": ["train"], "steps": ["steps", "tools"]}
    more = [name for fact, names in optional.items() if kept[fact].any() for name in names]
    times = np.array([repeats.get(name, 1) for name in store.sources], dtype=np.int32)
    repeated = (times[kept["source"]] > 1).any()
    gathered = np.cumsum(kept["characters"], dtype=np.int64) // TOGETHER

    def tables() -> "Iterator[pyarrow.Table]":
        import pyarrow

        for part in np.split(rows, np.flatnonzero(np.diff(gathered)) + 1):
            texts = store.columns(part, ["messages", *more])
            columns = {
                "id": store.ids(part),
                "source": store.names(part),
                "position": pyarrow.array(store.facts["position"][part]),
                "messages": texts["messages"],
                "cluster": store.ids(store.cluster[part]),
            } | {name: texts[name] for name in more}
            if repeated:
                columns["repeat"] = pyarrow.array(times[store.facts["source"][part]])
            yield pyarrow.table(columns)

    write_parquet(path, tables())


def write_dropped(path: Path, store: RowStore) -> None:
    """Writes the dropped rows, sorted by source and position, each with reason and evidence."""
    rows = store.sorted(np.flatnonzero(store.facts["reason"]))

    def tables() -> "Iterator[pyarrow.Table]":
        import pyarrow

        reasons = pyarrow.array(list(store.reasons))
        for start in range(0, max(1, len(rows)), DROPPED):
            part = rows[start : start + DROPPED]
            yield pyarrow.table(
                {
                    "source": store.names(part),
                    "position": pyarrow.array(store.facts["position"][part]),
                    "reason": reasons.take(pyarrow.array(store.facts["reason"][part])),
                    "evidence": pyarrow.array(map(store.evidence, part.tolist()), pyarrow.string()),
                }
            )

    write_parquet(path, tables())
