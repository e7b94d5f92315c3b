"""What git tracks, gathered from made-up stage outputs."""

import hashlib
import json
from pathlib import Path
from xml.etree import ElementTree

import pyarrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from aurora.core.errors import DataError
from aurora.core.manifests import origin_of
from aurora.pipeline.params import load_params
from aurora.report.write import Outputs, accuracy_table, compared, read_paper, write_report
from stages.report import main

ROOT = Path(__file__).parent.parent.parent
SCORE = {"acc": 0.5, "stderr": 0.1, "n": 8}
REPLIES = {
    "zh_reply_rate": 0.25,
    "mixed_rate": 0.125,
    "repetition": 0.5,
    "mean_length": 20.0,
    "no_language": 2,
    "lpr": 0.375,
    "wpr": None,
    "lpr_judged": 8,
}
OVERLAP = {"bleu_4": 18.5, "rouge_1": 38.0, "rouge_2": 19.0, "rouge_l": 26.5}
ANSWERS = {"exact_match": 0.75, "closed": 8, "word_share": 0.5, "human_word_share": 0.625}
UNJUDGED = REPLIES | {"zh_reply_rate": None, "mixed_rate": None, "n": 2}
CLEAN = {
    "sources": {
        "alpaca_data_zh_51k": {
            "read_single_round": 77,
            "read_multiple_rounds": 0,
            "single_round": 66,
            "multiple_rounds": 0,
        },
        "my_chats": {"read_single_round": 1234, "read_multiple_rounds": 9, "single_round": 5, "multiple_rounds": 4},
    },
    "total": {"read_single_round": 1311, "read_multiple_rounds": 9, "single_round": 71, "multiple_rounds": 4},
    "topics": {"food": 3, "society, law": 3, "computer": 10},
}


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outputs:
    """Outputs of every stage before report, as small as they can be, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, content in (
        ("clean", CLEAN),
        ("format", {"rows": 1, "trained_tokens": 7}),
        ("merge", {"shards": 2, "drift": {"rows": 4, "merged_4_bits": {"mean": 0.0625, "top1_agreement": 0.75}}}),
        ("sft", {"rows": 1, "peak_memory": 3 * 2**30}),
    ):
        Path(name).mkdir()
        Path(name, "metrics.json").write_text(json.dumps(content))
    Path("sft/curve.csv").write_text(
        "step,loss,learning_rate,grad_norm,held_out_loss\n0,,,,2.5\n1,2.0,0.1,1.0,\n5,1.5,0.1,0.5,1.75\n"
    )
    for model, reply, answers in (("base", "Hello | *there*", "AAAA"), ("tuned", "你好\n# 标题", "ABCD")):
        folder = Path(model)
        folder.mkdir()
        results = dict.fromkeys(("ceval", "mmlu", "cmmlu"), SCORE)
        results |= {"loss": 2.0, "too_long": 3, "subjects": {"ceval_law": SCORE}} | REPLIES | ANSWERS | {"replies": 9}
        results |= OVERLAP
        results |= {"categories": {"mmlu_stem": SCORE, "cmmlu_other": SCORE}}
        results["prompts"] = REPLIES | {"n": 1, "kinds": {"medical": REPLIES | {"n": 1}, "sums": UNJUDGED}}
        results["memory"] = {"planned": 2**29, "held": 2**28, "planned_mixtral_8x7b": 23 * 2**30}
        results["protocol"] = {
            "tasks": {
                "ceval": {"num_fewshot": 5, "limit": None},
                "mmlu": {"num_fewshot": 4, "limit": 7},
                "cmmlu": {"num_fewshot": 5, "limit": None},
            },
            "chat_template": False,
            "max_length": 4096,
            "quantization": {"bits": 4, "double_quant": True, "compute_dtype": "float16"},
            "lm_eval": "1.2.3",
            "model_sha256": f"sha-of-{model}",
        }
        (folder / "results.json").write_text(json.dumps(results))
        table = pyarrow.table({"id": ["a"], "prompt": ["你好"], "reply": [reply], "language": ["x"]})
        pyarrow.parquet.write_table(table, folder / "replies.parquet")
        table = pyarrow.table(
            {
                "kind": ["medical"],
                "number": [1],
                "round": [1],
                "prompt": ["我肚子疼"],
                "reply": [reply],
                "language": ["x"],
            }
        )
        pyarrow.parquet.write_table(table, folder / "prompts.parquet")
        names = {"task": ["ceval", "mmlu", "cmmlu", "cmmlu"], "subject": ["law"] * 4, "id": [0, 0, 0, 1]}
        names["category"] = [None, "mmlu_stem", "cmmlu_other", "cmmlu_other"]
        table = pyarrow.table(names | {"prediction": list(answers), "target": list("ABCD")})
        pyarrow.parquet.write_table(table, folder / "questions.parquet")
    for kind, name, size in (("benchmark", "mmlu", 1200), ("model", "base", 7)):
        folder = Path("raw", kind, name)
        folder.mkdir(parents=True)
        content = {"source": name, "kind": kind, "uri": f"hf://some/{name}", "licence": "MIT"}
        content["files"] = [{"path": "a.csv", "sha256": "0", "bytes": size}]
        (folder / "manifest.json").write_text(json.dumps(content))
    Path("raw/benchmark/mmlu/a.csv").write_bytes(b"question")
    Path("clean/sources.json").write_text(json.dumps({"sources": [origin_of(Path("raw/benchmark/mmlu"))]}))
    Path("format/lengths.csv").write_text("source,tokens,rows\nmine,64,1\n")
    Path("checkpoints.json").write_text('{"scores": []}')
    Path("adapter").mkdir()
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    return Outputs(
        clean=Path("clean/metrics.json"),
        format=Path("format/metrics.json"),
        sft=Path("sft"),
        merge=Path("merge/metrics.json"),
        models={"base": Path("base"), "tuned": Path("tuned")},
        adapter=Path("adapter"),
        sources=Path("clean/sources.json"),
        base_manifest=Path("raw/model/base/manifest.json"),
        lengths=Path("format/lengths.csv"),
        checkpoints=Path("checkpoints.json"),
    )


def gather(outputs: Outputs) -> dict:
    return write_report(outputs, Path("metrics"), Path("REPORT.md"), Path("report.html"))


def cells(text: str) -> list[list[str]]:
    """Rows of all tables of a Markdown page."""
    return [
        [cell.strip().replace("\\", "").replace("\u00a0", " ") for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_tables_hold_what_the_stages_measured(outputs: Outputs):
    gather(outputs)
    scores = json.loads(Path("metrics/eval.json").read_text())
    assert scores["base"]["ceval"] == SCORE
    assert not {"categories", "subjects", "protocol"} & scores["base"].keys()
    assert scores["tuned"]["prompts"] == REPLIES | {"n": 1}
    assert "ceval_law,tuned,0.5000,0.1890,8" in Path("metrics/subjects.csv").read_text()
    assert "mmlu_stem,tuned,0.5000,0.1000,8" in Path("metrics/categories.csv").read_text()
    assert Path("metrics/accuracy.csv").read_text().splitlines()[1] == "C-Eval,base,0.5000,0.1000,8"
    assert "0.5000 ± 0.1000" in Path("metrics/model_card.md").read_text(encoding="utf-8")
    table = ["topic,rows", '"computer",10', '"food",3', '"society, law",3']
    assert Path("metrics/topics.csv").read_text().splitlines() == table
    loss = ["step,rows,loss", "1,training,2.0", "5,training,1.5", "0,held out,2.5", "5,held out,1.75"]
    assert Path("metrics/loss.csv").read_text().splitlines() == loss
    training = ["step,learning_rate,grad_norm", "1,0.1,1.0", "5,0.1,0.5"]
    assert Path("metrics/training.csv").read_text().splitlines() == training


def test_dvc_metrics_has_few_numbers_of_each_model(outputs: Outputs):
    gather(outputs)
    found = {model: json.loads(Path(f"metrics/{model}.json").read_text()) for model in ("base", "tuned")}
    names = {"ceval", "mmlu", "cmmlu", "zh_reply_rate", "exact_match", "loss", "trained_tokens"}
    assert found["base"].keys() == found["tuned"].keys() == names
    assert found["base"]["ceval"] == SCORE["acc"]
    assert [found[model]["trained_tokens"] for model in ("base", "tuned")] == [0, 7]
    more = {"paper": {"mmlu_en": SCORE}, "other": {"arc": {"acc,none": 0.25, "acc_stderr,none": 0.1}}}
    further = compared({"zh_reply_rate": None, "exact_match": None, "loss": 1.0} | more, 0)
    assert (further["mmlu_en_paper"], further["arc"]) == (SCORE["acc"], 0.25)


def test_the_report_has_the_papers_tables_beside_what_was_measured(outputs: Outputs):
    gather(outputs)
    text = Path("REPORT.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    rows = cells(text)
    for row in (
        [
            "held-out prompts",
            "25 % → 25 %",
            "12 % → 12 %",
            "50 % → 50 %",
            "20 → 20",
            "38 % → 38 %",
            "- → -",
            "2 of 9 → 2 of 9",
        ],
        ["tuned", "2", "0.25", "0.375", "18.5", "38", "19", "26.5", "measured"],
        ["medical", "1", "25 % → 25 %", "12 % → 12 %", "50 % → 50 %", "20 → 20", "2 → 2"],
        ["sums", "2", "- → -", "- → -", "50 % → 50 %", "20 → 20", "2 → 2"],
        ["我肚子疼", "Hello | *there*", "你好 # 标题"],
        ["alpaca_data_zh_51k", "51,461", "0", "77", "0", "66", "0"],
        ["my_chats", "-", "-", "1,234", "9", "5", "4"],
        ["total", "141,345", "35,333", "1,311", "9", "71", "4"],
        ["**this run, tuned**", *["**50.00 ± 10.00**"] * 3, "**measured**"],
        ["Aurora", "51.9", "67.74", "49.69", "quoted"],
        ["MMLU, stem", "57.53", "50.00 ± 10.00", "50.00 ± 10.00", "8"],
        ["MMLU, humanities", "63.34", "-", "-", "-"],
        ["inference", "25", "-", "-"],
        ["weights of Mixtral-8x7B in these bits", "-", "23.000", "-"],
        ["weights of this run's model", "-", "0.500", "0.250"],
        ["training: peak_memory", "-", "-", "3.000"],
        ["shards", "2"],
        ["merged_4_bits", "0.0625", "0.75"],
        ["merge/metrics.json", "stage", "", "", md5("merge/metrics.json")],
    ):
        assert row in rows, row
    # One of three answers right, then all: CMMLU gains both of its two questions.
    assert any(row[0] == "CMMLU" and row[3].startswith("+100.00 (") for row in rows)
    assert "Mean loss per answer token of the held-out rows: 2.0000 → 2.0000 nats." in text
    assert "share of replies in Chinese from 25 % to 25 %" in text
    assert "MMLU 8 questions (the first 7 of each subject), 4 shots" in text
    assert "sha-of-base" in text and "ffffffff" not in text
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 5 and "Chinese-Alpaca-2-7B" in page and "67.74" in page
    for name in ("topics", "subjects", "loss", "languages", "accuracy"):
        picture = Path(f"metrics/pictures/{name}.svg").read_text(encoding="utf-8")
        ElementTree.fromstring(picture)
        assert picture.strip() in page and f"(metrics/pictures/{name}.svg)" in text


def md5(path: str) -> str:
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def test_every_number_of_the_paper_stands_in_the_report_and_is_marked(outputs: Outputs):
    gather(outputs)
    rows = cells(Path("REPORT.md").read_text(encoding="utf-8"))
    paper = read_paper()
    assert len(paper["table_3"]) == 23
    for row in paper["table_3"]:
        quoted = [row["model"], *(f"{row[name]:g}" for name in ("ceval", "mmlu", "cmmlu")), "quoted"]
        assert quoted in rows
    assert sum(row[-1] == "**measured**" and len(row) == 5 for row in rows) == 2
    sizes = {name: source.rows for name, source in load_params(ROOT / "profiles/paper.yaml").all_sources.items()}
    for row in paper["table_2"]:  # the pins of the profile say the same
        assert sizes[row["name"]] == row["single_round"] + row["multiple_rounds"]


def test_equal_inputs_give_equal_bytes(outputs: Outputs):
    def snapshot() -> dict[Path, bytes]:
        files = [path for path in Path("metrics").rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in (*files, Path("REPORT.md"), Path("report.html"))}

    gather(outputs)
    before = snapshot()
    gather(outputs)
    assert snapshot() == before
    assert not [path for path in before if str(Path.cwd()).encode() in before[path]]


def test_inputs_stand_with_the_hashes_of_dvc(outputs: Outputs):
    gather(outputs)
    rows = cells(Path("REPORT.md").read_text(encoding="utf-8"))
    files = [("a.csv", b"question"), ("manifest.json", Path("raw/benchmark/mmlu/manifest.json").read_bytes())]
    listing = json.dumps([{"md5": hashlib.md5(text).hexdigest(), "relpath": name} for name, text in files])
    folder = hashlib.md5(listing.encode()).hexdigest() + ".dir"
    assert ["raw/benchmark/mmlu", "hf://some/mmlu", "MIT", "1,200", folder] in rows
    manifest = hashlib.md5(Path("raw/model/base/manifest.json").read_bytes()).hexdigest()
    assert ["raw/model/base/manifest.json", "hf://some/base", "MIT", "7", manifest] in rows
    assert [
        "clean/metrics.json",
        "stage",
        "",
        "",
        hashlib.md5(Path("clean/metrics.json").read_bytes()).hexdigest(),
    ] in rows


def test_a_reply_cannot_open_markup_of_its_own(outputs: Outputs):
    gather(outputs)
    page = Path("metrics/replies.md").read_text(encoding="utf-8")
    assert page.count("Hello \\| \\*there\\*") == 2  # to a fixed prompt and to a held-out one
    assert "\n# 标题" not in page
    assert page.index("## medical, fixed prompts") < page.index("## Held-out prompts")


def test_a_missing_or_unlike_output_names_its_stage(outputs: Outputs):
    Path("sft/curve.csv").unlink()
    with pytest.raises(DataError, match=r"curve\.csv: not found; it is written by: dvc repro sft"):
        gather(outputs)
    Path("sft/curve.csv").write_text("step\n")
    table = pyarrow.table({"id": ["b"], "prompt": ["x"], "reply": ["y"], "language": ["x"]})
    pyarrow.parquet.write_table(table, "tuned/replies.parquet")
    with pytest.raises(DataError, match="answer different prompts"):
        gather(outputs)
    results = json.loads(Path("tuned/results.json").read_text())
    del results["memory"]
    Path("tuned/results.json").write_text(json.dumps(results))
    with pytest.raises(
        DataError, match=r"tuned/results\.json: no 'memory'; write it again by: dvc repro -f eval@tuned"
    ):
        gather(outputs)
    assert not Path("metrics").exists() and not Path("REPORT.md").exists()


def test_the_stage_takes_its_places_from_its_options(outputs: Outputs):
    arguments = ["--clean", "clean/metrics.json", "--format", "format/metrics.json", "--sft", "sft"]
    arguments += ["--merge", "merge/metrics.json", "--base", "base", "--tuned", "tuned"]
    arguments += ["--sources", "clean/sources.json", "--base-manifest", "raw/model/base/manifest.json"]
    arguments += ["--adapter", "adapter", "--checkpoints", "checkpoints.json"]
    arguments += ["--lengths", "format/lengths.csv", "--out", "metrics", "--report", "REPORT.md"]
    arguments += ["--page", "report.html"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert Path("metrics/lengths.csv").read_bytes() == Path("format/lengths.csv").read_bytes()
    Path("format/lengths.csv").unlink()
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 1 and not found.stdout
    assert found.stderr == "error: format/lengths.csv: not found; it is written by: dvc repro format\n"


def test_a_benchmark_that_was_not_run_has_no_bar():
    assert accuracy_table({"base": {"mmlu": SCORE}, "tuned": {"mmlu": SCORE}}).count("\n") == 3


def test_every_plot_of_what_report_writes_has_its_columns_and_template(outputs: Outputs):
    gather(outputs)
    content = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    assert all(Path(metric).is_file() for metric in content["metrics"])
    seen = set()
    for plot in content["plots"]:
        ((_, settings),) = plot.items()
        if settings["template"] not in ("simple", "linear"):
            json.loads((ROOT / f".dvc/plots/{settings['template']}.json").read_text(encoding="utf-8"))
        for axis in (settings["x"], settings["y"]):
            for file, columns in axis.items() if isinstance(axis, dict) else ():
                header = Path(file).read_text(encoding="utf-8").splitlines()[0].split(",")
                assert set([columns] if isinstance(columns, str) else columns) <= set(header)
                seen.add(file)
    assert {"metrics/accuracy.csv", "metrics/categories.csv", "metrics/subjects.csv"} <= seen
