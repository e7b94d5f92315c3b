"""Rows of the format stage: nothing lost uncounted, the split stable, files equal whatever the threads."""

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
from stand_ins.format_case import PARAMS, Row, identity, many, params, talk, write

from aurora.core.errors import AuroraError, DataError, ModelError, ParamsError
from aurora.core.files import rounded
from aurora.core.messages import Message
from aurora.core.parquet import ROW_GROUP
from aurora.format.batch import CHECKED
from aurora.format.format import format_rows
from aurora.format.params import Format
from aurora.format.prompt_formats import MistralFormat
from aurora.format.rounds import cut_rounds
from aurora.format.row_files import BATCH, TRAIN, RowWriter
from aurora.format.row_statistics import ChineseCost, packed_rows, packing_efficiency
from aurora.prompt.mistral import encode, trained_spans
from aurora.prompt.tokenizer import sentencepiece_processor

MODEL_FILE = MistralTokenizer._data_path() / "tokenizer.model.v1"
PROCESSOR = sentencepiece_processor(MODEL_FILE)


def first_round(ids: list[int], labels: list[int]) -> dict[str, str]:
    """First prompt and its answer, read off the tokens of a row."""
    start = next(index for index, label in enumerate(labels) if label != -100)
    prompt = PROCESSOR.decode(ids[1:start])
    assert prompt.startswith("[INST] ") and prompt.endswith(" [/INST]")
    return {"prompt": prompt[7:-8], "reply": PROCESSOR.decode(ids[start : ids.index(2)])}


def run(tmp_path: Path, rows: list[Row], rules: Format = PARAMS, **options: object) -> tuple[list[dict], dict]:
    """Rows of both sides, each with its `side`, and the metrics."""
    clusters = options.pop("clusters", None)
    conversations = write(tmp_path / "conversations.parquet", rows, clusters)
    metrics = format_rows(conversations, MODEL_FILE, tmp_path / "out", rules, **options)
    found = []
    for side in ("train", "held_out"):
        table = pyarrow.parquet.read_table(tmp_path / "out" / f"{side}.parquet")
        for row in table.to_pylist():
            texts = first_round(row["input_ids"], row["labels"])
            assert side == "train" or texts == {"prompt": row["prompt"], "reply": row["reply"]}
            found.append({**row, **texts, "side": side})
    return found, metrics


def test_rows_hold_the_rounds_of_their_conversations(tmp_path):
    rows = many(400)
    by_id = {identity(messages): messages for _, messages in rows}
    found, metrics = run(tmp_path, rows)
    assert len({row["id"] for row in found}) == len(found)
    kept = {key: [] for key in by_id}
    for row in sorted(found, key=lambda row: (row["id"].partition(".")[0], int(row["id"].partition(".")[2] or 0))):
        assert len(row["input_ids"]) == len(row["labels"]) <= PARAMS.max_length
        messages = by_id[row["id"].partition(".")[0]]
        answers = [PROCESSOR.decode(span[:-1]) for span in trained_spans(row["input_ids"], row["labels"])]
        start = len(kept[row["id"].partition(".")[0]])
        pairs = list(zip(messages[::2], messages[1::2], strict=True))
        taken = [pair for pair in pairs[start:] if len(encode(PROCESSOR, pair)[0]) <= PARAMS.max_length][: len(answers)]
        assert [answer.content for _, answer in taken] == answers
        assert encode(PROCESSOR, [turn for pair in taken for turn in pair]) == (row["input_ids"], row["labels"])
        assert (row["prompt"], row["reply"]) == (taken[0][0].content, taken[0][1].content)
        kept[row["id"].partition(".")[0]] += [None] * len(answers)
    rounds = sum(len(messages) // 2 for messages in by_id.values())
    dropped = metrics["rounds_dropped_too_long"] + metrics["rounds_dropped_rest"]
    assert metrics["rounds"] == rounds == sum(map(len, kept.values())) + dropped
    assert metrics["conversations_continued"] > 20


def test_metrics_are_true(tmp_path):
    found, metrics = run(tmp_path, many(400), params(long_conversation="drop_rest", max_length=150))
    read = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert read == rounded(metrics)
    assert set(read["sources"]) == {"alpaca", "sharegpt"}
    for name, part in [(None, read), *read["sources"].items()]:
        rows = [row for row in found if name in (None, row["source"])]
        lengths = [len(row["input_ids"]) for row in rows]
        assert part["train_rows"] == sum(row["side"] == "train" for row in rows)
        assert part["held_out_rows"] == sum(row["side"] == "held_out" for row in rows)
        assert part["tokens"] == sum(lengths)
        assert part["trained_tokens"] == sum(label != -100 for row in rows for label in row["labels"])
        assert part["row_tokens_max"] == max(lengths)
        assert part["row_tokens_median"] == sorted(lengths)[(len(lengths) - 1) // 2]
        assert part["conversations"] - part["conversations_dropped"] == len(rows)
        assert part["rounds"] == (part["rounds_kept"] + part["rounds_dropped_too_long"] + part["rounds_dropped_rest"])
    assert read["rounds_dropped_rest"] > 0 and read["rounds_dropped_too_long"] > 0
    counted = [key for key, value in read.items() if isinstance(value, int) and "max" not in key]
    for key in (key for key in counted if not key.startswith("row_tokens")):
        assert read[key] == sum(part[key] for part in read["sources"].values()), key
    table = (tmp_path / "out" / "lengths.csv").read_text().splitlines()
    assert table[0] == "source,tokens,rows"
    assert sum(int(line.split(",")[2]) for line in table[1:]) == len(found)


def test_the_plot_of_lengths_draws_columns_of_the_table(tmp_path, root):
    import yaml

    run(tmp_path, many(60))
    header = (tmp_path / "out" / "lengths.csv").read_text().splitlines()[0].split(",")
    plots = {
        name: plot for entry in yaml.safe_load((root / "dvc.yaml").read_text())["plots"] for name, plot in entry.items()
    }
    (plot,) = [plot for plot in plots.values() if "metrics/lengths.csv" in plot["y"]]
    template = json.loads((root / ".dvc" / "plots" / f"{plot['template']}.json").read_text())
    assert {plot["x"]["metrics/lengths.csv"], plot["y"]["metrics/lengths.csv"]} == {"tokens", "rows"}
    assert {"tokens", "rows", template["facet"]["row"]["field"]} == set(header)


def test_tokens_dropped_are_those_of_dropped_rounds(tmp_path):
    rows = [("a", talk("q", "x", "long " * 400, "y", "r", "z")), ("a", talk("other", "answer"))]
    found, metrics = run(tmp_path, rows, params(held_out=0.5))
    lost = encode(PROCESSOR, talk("long " * 400, "y"))[0]
    assert metrics["tokens_dropped"] == len(lost) - 1  # without <s>
    assert metrics["rounds_dropped_too_long"] == 1
    assert metrics["conversations_continued"] == 1
    assert sorted(row["prompt"] for row in found) == ["other", "q", "r"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.booleans())
def test_rounds_are_cut_whole_and_in_order(lengths, continued):
    rows, too_long, rest = cut_rounds(lengths, 20, continued)
    assert sorted([*(index for row in rows for index in row), *too_long, *rest]) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    assert too_long == [index for index, length in enumerate(lengths) if length > 20]
    assert all(after == before + 1 for row in rows for before, after in pairwise(row))
    for before, after in pairwise(rows):  # no row could have taken the next round
        close = after[0] == before[-1] + 1
        assert not close or sum(lengths[index] for index in before) + lengths[after[0]] > 20
    assert (continued and not rest) or len(rows) <= 1


def test_rest_is_dropped_when_rows_are_not_continued(tmp_path):
    rows = many(200)
    found, metrics = run(tmp_path, rows, params(long_conversation="drop_rest"))
    assert not any("." in row["id"] for row in found)
    assert metrics["rounds_dropped_rest"] > 0
    assert metrics["conversations_continued"] == 0


def test_a_long_prompt_loses_its_beginning(tmp_path):
    long = "开头" + "很长的文字🙂" * 200 + "结尾"
    rows = [
        ("a", talk("q", "x", long, "an answer", "r", "z")),
        *[("a", talk(f"o{index}", "p")) for index in range(9)],
        ("a", talk("x", "y" * 3000)),
    ]
    found, metrics = run(tmp_path, rows, params(long_round="truncate_prompt", held_out=0.5))
    assert metrics["prompts_truncated"] == 1
    assert metrics["rounds_dropped_too_long"] == 1  # the answer alone is too long
    assert metrics["tokens_dropped"] > 2000
    (row,) = [row for row in found if row["reply"] == "an answer"]
    assert long.endswith(row["prompt"]) and row["prompt"].endswith("结尾")
    assert 256 - 4 <= len(row["input_ids"]) <= 256
    assert row["input_ids"] == encode(PROCESSOR, talk(row["prompt"], "an answer"))[0]
    assert sorted({row["reply"] for row in found}) == ["an answer", "p", "x", "z"]


def test_truncation_keeps_the_longest_end():
    text, ids = MistralFormat(PROCESSOR, "mistral").shorten("abc " * 50, 20, "")
    assert len(ids) <= 20
    longer = PROCESSOR.encode(f"[INST] {('abc ' * 50)[-len(text) - 1 :]} [/INST]")
    assert len(longer) > 20
    assert MistralFormat(PROCESSOR, "mistral").shorten("abc", 7, "") is None
    assert MistralFormat(PROCESSOR, "mistral").shorten("abc", 100, "")[0] == "abc"


def test_every_row_ends_in_time_with_bos_on_every_turn(tmp_path):
    found, _ = run(tmp_path, many(200), params(prompt="bos_every_turn", max_length=100))
    for row in found:
        assert len(row["input_ids"]) <= 100
        assert row["input_ids"].count(1) == row["input_ids"].count(2)
    assert max(len(row["input_ids"]) for row in found) >= 97


def test_a_new_source_moves_no_row(tmp_path):
    old, new = many(300, seed=1), [("news", messages) for _, messages in many(300, seed=2)]
    before, _ = run(tmp_path, old)
    after, _ = run(tmp_path, old + new)
    sides = {row["id"]: row["side"] for row in after}
    assert all(sides[row["id"]] == row["side"] for row in before)
    share = sum(side == "held_out" for side in sides.values()) / len(sides)
    assert 0.12 < share < 0.28


def test_clusters_never_straddle_the_split_and_what_is_left_out_is_counted(tmp_path):
    rows = many(300)
    ids = sorted(identity(messages) for _, messages in rows)
    clusters = {key: ids[index - index % 3] for index, key in enumerate(ids)}  # three to a cluster
    found, metrics = run(tmp_path, rows, params(max_length=4096), clusters=clusters)
    sides: dict[str, set] = {}
    for row in found:
        sides.setdefault(clusters[row["id"]], set()).add(row["side"])
    assert all(len(side) == 1 for side in sides.values())
    assert {side for (side,) in sides.values()} == {"train", "held_out"}
    lost = [messages for _, messages in rows if identity(messages) not in {row["id"] for row in found}]
    assert metrics["conversations_dropped"] == len(lost) > 50
    assert metrics["rounds_dropped_near_held_out"] == sum(len(messages) // 2 for messages in lost)
    assert metrics["tokens_dropped"] == sum(len(encode(PROCESSOR, messages)[0]) - 1 for messages in lost)


def test_bytes_do_not_depend_on_threads_nor_on_the_run(tmp_path):
    rows = many(BATCH + 200)
    run(tmp_path, rows, threads=1)
    names = ("train.parquet", "held_out.parquet", "metrics.json", "lengths.csv")
    first = [(tmp_path / "out" / name).read_bytes() for name in names]
    run(tmp_path, rows, threads=3)
    assert first == [(tmp_path / "out" / name).read_bytes() for name in names]
    metadata = pyarrow.parquet.read_table(tmp_path / "out" / "train.parquet").column("id").to_pylist()
    assert [name.partition(".")[0] for name in metadata] == sorted(name.partition(".")[0] for name in metadata)


def test_row_groups_are_whole(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    def rows(start: int, count: int) -> pyarrow.Table:
        names = [str(number) for number in range(start, start + count)]
        ids = [[number] for number in range(count)]
        return pyarrow.Table.from_arrays([names, names, ids, ids], schema=TRAIN)

    with ThreadPoolExecutor(1) as pool, RowWriter(tmp_path / "rows.parquet", TRAIN, pool) as writer:
        for start in range(0, 3 * ROW_GROUP, 5000):
            writer.write(rows(start, 5000))
    file = pyarrow.parquet.ParquetFile(tmp_path / "rows.parquet")
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    assert sizes == [ROW_GROUP] * 3 + [25_000 - 3 * ROW_GROUP]
    assert file.read()["id"].to_pylist() == [str(number) for number in range(25_000)]


def test_datasets_maps_the_rows_as_they_are(tmp_path):
    import datasets

    found, _ = run(tmp_path, many(100))
    path = str(tmp_path / "out" / "train.parquet")
    rows = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.features["input_ids"].feature.dtype == rows.features["labels"].feature.dtype == "int32"
    assert rows.cache_files
    assert rows[0]["input_ids"] == found[0]["input_ids"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 64), min_size=1, max_size=60))
def test_packing_is_best_fit_decreasing(lengths):
    bins: list[int] = []  # free tokens of each packed row
    for length in sorted(lengths, reverse=True):
        fits = [index for index, free in enumerate(bins) if free >= length]
        if fits:
            bins[min(fits, key=lambda index: bins[index])] -= length
        else:
            bins.append(64 - length)
    assert packed_rows(lengths, 64) == len(bins)
    assert packing_efficiency(lengths, 64) == pytest.approx(sum(lengths) / (64 * len(bins)))


@pytest.mark.slow
def test_packing_equals_that_of_trl():
    import datasets
    from trl import pack_dataset

    source = random.Random(3)
    for _ in range(5):
        lengths = [min(512, int(source.lognormvariate(4.5, 1)) + 1) for _ in range(2000)]
        rows = datasets.Dataset.from_dict({"input_ids": [[7] * length for length in lengths]})
        packed = pack_dataset(rows, 512, "bfd")
        assert packing_efficiency(lengths, 512) == pytest.approx(sum(lengths) / (512 * len(packed)))


def test_chinese_cost_is_counted_character_by_character():
    texts = ["你好 world", "龘龘。", "🙂 ï 𠮷㐀䷀", "一鿿", "中 文  ▁字", "no"]
    encoded = [numpy.array(PROCESSOR.encode(text), dtype=numpy.int32) for text in texts]
    for sources in ([0] * 6, [0, 1, 0, 3, 1, 0]):
        codes = numpy.repeat(sources, [len(ids) for ids in encoded]).astype(numpy.int32)
        counts = ChineseCost(PROCESSOR).count(numpy.concatenate(encoded), codes, 4)
        for source in range(4):
            own = [text for text, code in zip(texts, sources, strict=True) if code == source]
            signs = [sign for text in own for sign in text if "\u4e00" <= sign <= "\u9fff"]
            spelled = [sign for sign in signs if PROCESSOR.piece_to_id(sign) == 0]
            pieces = [piece for text in own for piece in PROCESSOR.encode(text, out_type=str)]
            held = sum(any("\u4e00" <= sign <= "\u9fff" for sign in piece) for piece in pieces)
            assert counts[source].tolist() == [len(signs), len(spelled), held + 3 * len(spelled)]


def test_every_broken_file_gets_one_line(tmp_path):
    path = tmp_path / "conversations.parquet"

    def failure(kind: type[AuroraError] = DataError, rules: Format = PARAMS, tokenizer: Path = MODEL_FILE) -> str:
        with pytest.raises(kind) as caught:
            format_rows(path, tokenizer, tmp_path / "out", rules)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "not found; it is written by: dvc repro clean" in failure()
    path.write_bytes(b"PAR1 but no more")
    assert "damaged (" in failure()
    pyarrow.parquet.write_table(pyarrow.table({"id": ["a"], "text": ["b"]}), path)
    assert "columns are ['id', 'text'], not id, source, messages" in failure()
    write(path, [])
    assert "holds no conversation" in failure()
    good = [("a", talk(f"q{number}", "r")) for number in range(30)]
    write(path, [*good, ("a", (*talk("q", "r"), Message("assistant", "again")))])
    assert "two assistant turns in a row (1, 2)" in failure()
    write(path, [*good, ("a", ())])
    assert "an empty conversation; run dvc repro clean" in failure()
    write(path, [*good, ("a", talk("q"))])
    assert "has no answer" in failure()
    write(path, [*good, ("a", talk("q", ""))])
    assert "the assistant turn 1 is empty" in failure()
    write(path, [good[0], good[0]])
    assert "but ids are unique and sorted; set clean.exact_duplicates to true" in failure()
    write(path, good)
    assert "and of 30 conversations none is held out; raise it or add data" in failure(
        ParamsError, params(held_out=1e-9)
    )
    assert "none is left to train on; lower it" in failure(ParamsError, params(held_out=1 - 1e-9))
    write(path, [("a", talk(f"q{number} " + "w " * 20, "r " * 20)) for number in range(9)])
    shortest = len(encode(PROCESSOR, talk("q0 " + "w " * 20, "r " * 20))[0])
    assert f"format.max_length is 16, but the shortest round has {shortest} tokens; raise it" in failure(
        ParamsError, params(max_length=16)
    )
    assert "no tokeniser there" in failure(ModelError, tokenizer=tmp_path / "tokenizer.model")


def test_the_row_of_a_broken_conversation_is_named(tmp_path):
    rows = sorted(many(BATCH + 50), key=lambda row: identity(row[1]))
    path = write(tmp_path / "conversations.parquet", rows)
    table = pyarrow.parquet.read_table(path)
    talks = table["messages"].to_pylist()
    talks[BATCH + 7][1]["role"] = "user"
    column = pyarrow.array(talks, table.schema.field("messages").type)
    pyarrow.parquet.write_table(table.set_column(3, "messages", column), path)
    with pytest.raises(DataError, match=rf"row {BATCH + 7}: two user turns in a row \(0, 1\); run dvc repro clean"):
        format_rows(path, MODEL_FILE, tmp_path / "out", PARAMS)


def test_a_tokeniser_that_loses_text_is_caught(tmp_path, monkeypatch):
    import aurora.format.prompt_formats

    def losing(processor, texts, threads=1):
        return [numpy.array(processor.encode(text.replace("你".encode(), b"")), dtype=numpy.int32) for text in texts]

    monkeypatch.setattr(aurora.format.prompt_formats, "encode_texts", losing)
    with pytest.raises(ModelError, match="the tokens trained in round 0 decode to '好', but the answer is '你好'"):
        run(tmp_path, [("a", talk(f"q{number}", "你好")) for number in range(CHECKED)])


def test_the_stage_writes_all_or_nothing(tmp_path, monkeypatch, root):
    from stages.format import main

    monkeypatch.chdir(root)
    conversations = write(tmp_path / "conversations.parquet", many(60))
    out = tmp_path / "format"
    arguments = ["--conversations", str(conversations), "--tokenizer", str(MODEL_FILE), "--out", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("format: ") and done.stdout.count("\n") == 1
    names = ["held_out.parquet", "lengths.csv", "metrics.json", "preview.html", "train.parquet"]
    assert sorted(path.name for path in out.iterdir()) == names
    before = {name: (out / name).read_bytes() for name in names}
    write(conversations, [("a", talk("q"))])
    failed = CliRunner().invoke(main, arguments)
    assert failed.exit_code == 1
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert before == {name: (out / name).read_bytes() for name in names}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conversations.parquet", "format"]


def another_vocabulary(base: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString((base / "tokenizer.model").read_bytes())
    model.pieces[31_999].piece = "一二三"
    (base / "tokenizer.model").write_bytes(model.SerializeToString())


def another_template(base: Path) -> None:
    (base / "tokenizer_config.json").write_text('{"chat_template": "<|im_start|>{{ messages }}"}')


def other_special_tokens(base: Path) -> None:
    (base / "config.json").write_text('{"vocab_size": 32002, "eos_token_id": 32000}')


def untouched(base: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "last", "max_length", "message"),
    [
        (another_vocabulary, talk("q", "r"), 256, "its 32,000 pieces (sha256 "),
        (other_special_tokens, talk("q", "r"), 256, "vocab_size is 32002, but that of the tokeniser is 32000; give"),
        (another_template, talk("q", "r"), 256, "chat_template has no [INST] … [/INST], so it is of another model"),
        (
            untouched,
            (*talk("q", "r"), Message("assistant", "again")),
            256,
            "two assistant turns in a row (1, 2); run dvc repro clean",
        ),
        (untouched, (), 256, "an empty conversation; run dvc repro clean"),
        (
            untouched,
            talk("q", "r"),
            16,
            "format.max_length is 16, but the shortest round has {shortest} tokens; raise it",
        ),
    ],
)
def test_bad_input_ends_the_stage_with_one_line(tmp_path, monkeypatch, root, change, last, max_length, message):
    from stages.format import main

    text = (root / "params.yaml").read_text()
    assert "\n  max_length: 512\n" in text
    (tmp_path / "params.yaml").write_text(text.replace("max_length: 512", f"max_length: {max_length}", 1))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    (tmp_path / "base/tokenizer.model").write_bytes(MODEL_FILE.read_bytes())
    change(tmp_path / "base")
    long = [("a", talk(f"{number} " + "words " * 30, "more words " * 15)) for number in range(100, 140)]
    conversations = write(tmp_path / "conversations.parquet", long if max_length == 16 else [*long, ("a", last)])
    names = sorted(path.name for path in tmp_path.iterdir())
    arguments = ["--conversations", str(conversations), "--tokenizer", "base/tokenizer.model", "--out", "format"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message.format(shortest=len(encode(PROCESSOR, long[0][1])[0])) in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_template_of_another_family_is_a_params_error(tmp_path, root):
    from aurora.pipeline.params import load_params

    text = (root / "params.yaml").read_text().replace("prompt: mistral", "prompt: chatml")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(
        ParamsError,
        match=r"format.prompt: Input should be 'mistral', 'bos_every_turn' or 'chat_template', found 'chatml'",
    ):
        load_params(tmp_path / "params.yaml")


def test_the_real_mix_packs_well(tmp_path, real_data):
    from stand_ins.real_rows import real_conversations

    rows = {}
    for rounds in real_conversations(real_data):
        messages = talk(*(text for pair in rounds for text in pair))
        rows[identity(messages)] = ("single" if len(messages) == 2 else "multi", messages)
    _, metrics = run(tmp_path, list(rows.values()), params(max_length=4096, held_out=0.02))
    assert metrics["packing_efficiency"] >= 0.97
    assert metrics["rounds_kept"] / metrics["rounds"] > 0.995
    assert 1 < metrics["tokens_per_chinese_character"] < 1.3


@pytest.mark.parametrize("prompt", ["mistral", "bos_every_turn"])
def test_forged_control_tokens_would_stop_the_run(tmp_path, monkeypatch, prompt):
    import aurora.format.prompt_formats

    def forging(processor, texts, threads=1):
        return [numpy.array([*processor.encode(text), 2], dtype=numpy.int32) for text in texts]

    monkeypatch.setattr(aurora.format.prompt_formats, "encode_texts", forging)
    with pytest.raises(ModelError, match="40 control tokens where 20 were placed; the text forged some"):
        run(tmp_path, [("a", talk(f"q{number}", "r")) for number in range(10)], params(prompt=prompt))


@pytest.mark.slow
def test_the_trainer_takes_the_rows_and_isolates_packed_ones(tmp_path):
    import datasets
    import torch
    from transformers import AutoTokenizer, MixtralConfig, MixtralForCausalLM
    from trl import SFTConfig, SFTTrainer

    from aurora.small_base.tokenizer_folder import write_tokenizer

    run(tmp_path, many(60))
    write_tokenizer(MODEL_FILE, tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    path = str(tmp_path / "out" / "train.parquet")
    rows = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = MixtralConfig(vocab_size=32000, num_key_value_heads=1, num_local_experts=2, initializer_range=0.3, **sizes)
    model = MixtralForCausalLM(config)

    def losses(**options: object) -> tuple[float, int]:
        """Summed loss and number of trained tokens over all batches."""
        arguments = SFTConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=4,
            report_to="none",
            use_cpu=True,
            bf16=False,
            **options,
        )
        trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in trainer.get_train_dataloader():
                trained = int((batch["labels"] != -100).sum())
                total += float(model.eval()(**batch).loss) * trained
                count += trained
        return total, count

    apart, count = losses(max_length=None)
    assert count == sum(label != -100 for row in rows for label in row["labels"])
    packed, same = losses(max_length=1024, packing=True)
    assert same == count
    assert packed == pytest.approx(apart, rel=1e-5)
