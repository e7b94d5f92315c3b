"""Clean at the paper's size, and its near-duplicate step beside datasketch and brute force.

    AURORA_REAL_DATA=FOLDER .venv/bin/python benchmarks/clean.py [--rows 176678] [--compared 20000] [--brute 6000]

Writes files with the paper's numbers of rows in the true formats to a temporary folder. Their conversations are real
ones (or those of samples/) used once as they are, and then with every sentence replaced by another of about its length,
so that the mix of lengths and rounds stays and rows are not copies. 1 % are near duplicates, planted.
"""

import argparse
import json
import os
import random
import re
import shutil
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

from aurora.clean import filters, repairs
from aurora.clean.apply_rules import _repair, whole_rounds
from aurora.clean.clean import CHUNK, clean
from aurora.clean.contamination import Questions, read_questions
from aurora.clean.layouts import LAYOUTS
from aurora.clean.near_duplicates import BANDS, ROWS, NearDuplicates, band_keys, find, jaccard, shingles
from aurora.clean.parse_rows import parse
from aurora.clean.read_files import read_items
from aurora.clean.shingles import characters
from aurora.clean.topics import topic
from aurora.core.messages import Message, content_id
from aurora.pipeline.params import load_params

MEASURES = ("aurora/clean",)

ROOT = Path(__file__).parent.parent
PAPER = {"alpaca_data_zh_51k": 51461, "alpaca_gpt4_data_zh": 48818, "sharegpt_70k": 76399}
REAL = {
    "alpaca_data_zh_51k": "alpaca_data_zh_51k/rows_1517.json",
    "alpaca_gpt4_data_zh": "alpaca_gpt4_data_zh/rows_500_alpaca.json",
    "sharegpt_70k": "sharegpt_70k/sharegpt_zh_500.jsonl",
}
SENTENCE = re.compile(r"[^。！？\n]*[。！？\n]?")
PLANTED = 0.01
SHARED = 20000  # rows for the shares of the rules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=sum(PAPER.values()))
    parser.add_argument("--compared", type=int, default=20000, help="rows for datasketch")
    parser.add_argument("--brute", type=int, default=6000, help="rows for brute-force Jaccard")
    options = parser.parse_args()
    params = load_params(ROOT / "profiles/paper.yaml").clean
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folders = write_sources(folder, options.rows)
        benchmarks = write_benchmarks(folder)
        whole(folders, benchmarks, params)
        by_rule(folders, benchmarks, params)
        texts = conversations(folders, options.compared)
        near_duplicates(texts, options.brute)


def write_sources(folder: Path, rows: int) -> dict[str, Path]:
    """Source folders with manifests, of the paper's shares of `rows`."""
    real = os.environ.get("AURORA_REAL_DATA")
    folders = {}
    for name, count in PAPER.items():
        path = Path(real) / "instructions" / REAL[name] if real else next((ROOT / "samples").glob(f"{name}.*"))
        items = [item for item in read_items(path) if isinstance(item, dict)]
        target = folder / name
        target.mkdir()
        made = resampled(items, round(count * rows / sum(PAPER.values())), random.Random(name))
        with open(target / "rows.json", "w", encoding="utf-8") as file:
            if name == "sharegpt_70k":
                file.writelines(json.dumps(item) + "\n" for item in made)
            else:
                for number, item in enumerate(made):
                    file.write((",\n" if number else "[\n") + json.dumps(item, ensure_ascii=False, indent=2))
                file.write("\n]")
        manifest = {"source": name, "kind": "instructions", "rows": count, "files": [{"path": "rows.json"}]}
        manifest["format"] = "sharegpt" if name == "sharegpt_70k" else "alpaca"
        (target / "manifest.json").write_text(json.dumps(manifest))
        folders[name] = target
    return folders


def write_benchmarks(folder: Path) -> list[Path]:
    """Benchmark folders with manifests."""
    real = os.environ.get("AURORA_REAL_DATA")
    result = []
    for name in ("mmlu", "ceval", "cmmlu"):
        origin = Path(real) / "benchmarks" / name if real else ROOT / "samples" / name
        target = folder / name
        shutil.copytree(origin, target, copy_function=shutil.copyfile)
        manifest = {"source": name, "kind": "benchmark", "format": name, "rows": None, "files": []}
        (target / "manifest.json").write_text(json.dumps(manifest))
        result.append(target)
    return result


def resampled(items: list[dict], count: int, chance: random.Random):
    """The items, then copies with exchanged sentences, 1 % of all being near duplicates of the one before."""
    pool: dict[int, list[str]] = {}
    for item in items:
        for text in texts_of(item):
            for sentence in SENTENCE.findall(text):
                if sentence:
                    pool.setdefault(kind(sentence), []).append(sentence)
    last = items[0]
    for number in range(count):
        if number < len(items):
            last = items[number]
        elif chance.random() < PLANTED:
            yield mapped(last, lambda text: edited(text, chance))
            continue
        else:
            last = mapped(
                items[chance.randrange(len(items))],
                lambda text: "".join(
                    chance.choice(pool[kind(sentence)]) if len(sentence) > 5 else sentence
                    for sentence in SENTENCE.findall(text)
                ),
            )
        yield last


def kind(sentence: str) -> tuple[int, bool, bool]:
    """Sentences of one kind take each other's place: about the same length, script and end."""
    return len(sentence) // 6, sentence.isascii(), sentence[-1] in "。！？\n"


def texts_of(value: object):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_of(item)


def mapped(value: object, change):
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: item if key == "conversation_id" else mapped(item, change) for key, item in value.items()}
    return [mapped(item, change) for item in value] if isinstance(value, list) else value


def edited(text: str, chance: random.Random) -> str:
    """The text with one character in 60 exchanged: Jaccard of 5-grams about 0.85."""
    characters = list(text)
    for _ in range(len(characters) // 60):
        characters[chance.randrange(len(characters))] = chr(chance.randrange(0x4E00, 0x9000))
    return "".join(characters)


class PeakMemory(threading.Thread):
    """Greatest resident memory of this process and its children, in bytes; shared pages count for each."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.peak_unique = 0
        self.done = threading.Event()

    def run(self) -> None:
        process = psutil.Process()
        while not self.done.wait(0.5):
            try:
                infos = [item.memory_full_info() for item in (process, *process.children(recursive=True))]
            except psutil.Error:
                continue
            self.peak = max(self.peak, sum(info.rss for info in infos))
            self.peak_unique = max(self.peak_unique, sum(info.pss for info in infos))


def whole(folders: dict[str, Path], benchmarks: list[Path], params) -> None:
    size = sum((folder / "rows.json").stat().st_size for folder in folders.values())
    memory = PeakMemory()
    memory.start()
    start, before = time.perf_counter(), sum(os.times()[:4])
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as spill:
        metrics = clean(folders, benchmarks, params, {}, Path(out), Path(spill))
    seconds, cpu = time.perf_counter() - start, sum(os.times()[:4]) - before
    memory.done.set()
    total = metrics["total"]
    load = os.getloadavg()[0]
    print(f"\nwhole clean on {len(os.sched_getaffinity(0))} cores, all rules on; load of the machine {load:.1f}")
    print("      rows    MB  seconds  CPU seconds   rows/s  MB/s  peak GiB (PSS)  (RSS)      kept")
    print(
        f"{total['read']:>10,} {size / 1e6:>5.0f} {seconds:>8.1f} {cpu:>12.1f} {total['read'] / seconds:>8,.0f} "
        f"{size / 1e6 / seconds:>5.1f} {memory.peak_unique / 2**30:>15.2f} {memory.peak / 2**30:>6.2f} {total['kept']:>9,}"
    )
    print("dropped:", ", ".join(f"{name} {count:,}" for name, count in total["dropped"].items()))
    print("near duplicates:", metrics["near_duplicates"])


def by_rule(folders: dict[str, Path], benchmarks: list[Path], params) -> None:
    """CPU seconds of one process a rule, over the same rows in the paper's mix, each rule on all of them."""
    raw = []
    start = time.process_time()
    for name, folder in folders.items():
        count = round(SHARED * PAPER[name] / sum(PAPER.values()))
        for item, _ in zip(read_items(folder / "rows.json"), range(count), strict=False):
            raw.append((item, LAYOUTS["sharegpt" if "sharegpt" in folder.name else "alpaca"]))
    times = {"read JSON": time.process_time() - start}

    def timed(name: str, work):
        begin = time.process_time()
        result = work()
        times[name] = time.process_time() - begin
        return result

    turns = timed("parse", lambda: [turn for turn in (parse(*pair) for pair in raw) if hasattr(turn, "messages")])
    texts = [message.content for turn in turns for message in turn.messages]
    timed("invisible characters", lambda: [repairs.visible(text) for text in texts])
    timed("mojibake, repair", lambda: [repairs.MOJIBAKE.search(text) for text in texts])
    timed("html remnants", lambda: [repairs.without_html(text) for text in texts if "<" in text or "&" in text])
    repaired = [
        [
            Message(message.role, text)
            for message, text in zip(
                turn.messages, _repair([m.content for m in turn.messages], [], params), strict=True
            )
        ]
        for turn in turns
    ]
    rounds = [
        pairs for pairs in timed("roles", lambda: [whole_rounds(item, [], params)[0] for item in repaired]) if pairs
    ]
    for _switch, rule in filters.RULES:
        timed(rule.__name__.replace("_", " "), lambda rule=rule: [rule(pairs, params) for pairs in rounds])
    timed(
        "traditional",
        lambda: [filters.traditional_share([part for pair in pairs for part in pair[:2]]) for pairs in rounds],
    )
    timed("topic", lambda: [topic(*pairs[0][:2]) for pairs in rounds])
    turns = [[part for pair in pairs for part in pair[:2]] for pairs in rounds]
    timed("content id, exact duplicates", lambda: {content_id(pairs) for pairs in rounds})
    index = Questions([question for path in benchmarks for question in read_questions(path)], 0.8)
    timed(
        "contamination (index apart)",
        lambda: [index.find(turns[at : at + CHUNK]) for at in range(0, len(turns), CHUNK)],
    )
    timed("near duplicates", lambda: near_duplicates_of(["\n".join(texts) for texts in turns]))
    total = sum(times.values())
    print(f"\nCPU time by rule, one process, {len(raw):,} rows in the paper's mix")
    for name, seconds in sorted(times.items(), key=lambda item: -item[1]):
        print(f"{name:<28} {seconds:>7.2f} s {100 * seconds / total:>5.1f} %")


def conversations(folders: dict[str, Path], count: int) -> list[str]:
    result = []
    for folder in folders.values():
        layout = LAYOUTS["sharegpt" if "sharegpt" in folder.name else "alpaca"]
        for item, _ in zip(read_items(folder / "rows.json"), range(count // 3), strict=False):
            turns = parse(item, layout)
            if hasattr(turns, "messages"):
                result.append("\n".join(message.content for message in turns.messages))
    return result


def near_duplicates_of(texts: list[str]) -> NearDuplicates:
    return find(band_keys(texts).T, np.array(texts, dtype=object), 0.8)


def near_duplicates(texts: list[str], brute: int) -> None:
    try:
        from datasketch import MinHash, MinHashLSH
    except ModuleNotFoundError:
        raise SystemExit("the comparison of near duplicates needs: pip install datasketch==2.0.0") from None
    from scipy.sparse import csr_matrix

    start = time.perf_counter()
    found = near_duplicates_of(texts)
    ours = time.perf_counter() - start

    start = time.perf_counter()
    index = MinHashLSH(threshold=0.8, num_perm=BANDS * ROWS)
    reported: set[tuple[int, int]] = set()
    for number, text in enumerate(texts):
        sketch = MinHash(num_perm=BANDS * ROWS, seed=42)
        normal = characters(text).astype("<u4").tobytes().decode("utf-32-le")  # the same 5-grams as ours
        sketch.update_batch([normal[at : at + 5].encode() for at in range(max(1, len(normal) - 4))])
        reported.update((other, number) for other in index.query(sketch))
        index.insert(number, sketch)
    theirs = time.perf_counter() - start
    print(f"\nnear duplicates of {len(texts):,} rows, Jaccard of character 5-grams >= 0.8")
    print(f"ours (rensa, {BANDS} x {ROWS}, verified)  {ours:>7.1f} s")
    print(f"datasketch MinHashLSH, unverified {theirs:>7.1f} s   {theirs / ours:.1f} times as long")

    # Spread over the sources, with both of a planted pair: runs of neighbours.
    step = max(1, len(texts) // max(1, brute // 200))
    rows = [row for start in range(0, len(texts), step) for row in range(start, min(start + 200, len(texts)))]
    sets = [shingles(texts[row]) for row in rows]
    values, inverse = np.unique(np.concatenate(sets), return_inverse=True)
    lengths = np.array([len(item) for item in sets])
    matrix = csr_matrix(
        (np.ones(len(inverse), dtype=np.int32), inverse, np.concatenate([[0], np.cumsum(lengths)])),
        shape=(len(sets), len(values)),
    )
    common = (matrix @ matrix.T).tocoo()
    truth = {
        (rows[left], rows[right])
        for left, right, count in zip(common.row.tolist(), common.col.tolist(), common.data.tolist(), strict=True)
        if left < right and count >= 0.8 * (lengths[left] + lengths[right] - count)
    }
    inside = set(rows)
    pairs = found_pairs(texts, inside)
    print(f"against brute force on {len(rows):,} of them: {len(truth):,} true pairs")
    for name, given in (("ours", pairs), ("datasketch", {p for p in reported if p[0] in inside and p[1] in inside})):
        right = len(given & truth)
        print(f"{name:<11} recall {right / max(1, len(truth)):.3f}   precision {right / max(1, len(given)):.3f}")
    goes = {later for _, later in truth}
    print(f"rows that go for another: {len(goes & set(np.flatnonzero(found.kept_for >= 0))):,} of {len(goes):,} found")


def found_pairs(texts: list[str], inside: set[int]) -> set[tuple[int, int]]:
    """Verified pairs among some rows: those of equal buckets, compared one by one."""
    rows = sorted(inside)
    members: dict[tuple[int, int], list[int]] = {}
    pairs = set()
    for at, keys in enumerate(band_keys([texts[row] for row in rows]).tolist()):
        for key in enumerate(keys):
            for other in members.setdefault(key, []):
                pairs.add((rows[other], rows[at]))
            members[key].append(at)
    return {pair for pair in pairs if jaccard(shingles(texts[pair[0]]), shingles(texts[pair[1]])) >= 0.8}


if __name__ == "__main__":
    main()
