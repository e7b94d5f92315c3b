"""REPORT.md as blocks: the paper's tables and figures, quoted, beside the measurements of this run."""

from collections.abc import Mapping

from aurora.report.blocks import Block, Heading, Link, Paragraph, Picture, Table
from aurora.report.charts import bars, lines, shares
from aurora.report.inputs import CONFUSION_MEASURES, MODELS, REPLY_MEASURES, ReportInputs, change, shown
from aurora.report.published import (
    base_scores,
    checkpoints,
    confusion,
    forgetting,
    medical,
    other_tasks,
    protocols,
    router,
)
from aurora.report.scores import all_models, benchmarks, categories, findings, protocol, subjects

GIB = 2**30


def report_blocks(found: ReportInputs) -> list[Block]:
    """The whole page."""
    source = found.paper["source"]
    return [
        Heading("Report", 1),
        Paragraph(findings(found)),
        Paragraph(
            f"Numbers marked as quoted are those of {source}, its repository and other sources, named in ",
            Link("aurora/report/paper.yaml"),
            "; the stages of this run measured all others.",
        ),
        *_languages(found),
        *_answers(found),
        *_loss(found),
        *benchmarks(found),
        *forgetting(found),
        *base_scores(found),
        *_first_replies(found),
        *_kinds(found),
        *_rounds(found),
        *_topics(found),
        *confusion(found),
        *all_models(found),
        *protocols(found),
        *categories(found),
        *subjects(found),
        *medical(found),
        *other_tasks(found),
        *protocol(found),
        *_memory(found),
        *checkpoints(found),
        *router(found),
        *_merge(found),
        *_inputs(found),
    ]


def _languages(found: ReportInputs) -> list[Block]:
    rows, cells = {}, []
    shown_measures = REPLY_MEASURES | CONFUSION_MEASURES
    for where, key in (("held-out prompts", None), ("fixed prompts", "prompts")):
        sides = [found.results[model] if key is None else found.results[model][key] for model in MODELS]
        for model, side in zip(MODELS, sides, strict=True):
            chinese, mixed = side["zh_reply_rate"] or 0.0, side["mixed_rate"] or 0.0
            rows[f"{where}, {model}"] = {
                "Chinese": chinese,
                "mixture": mixed,
                "another language": max(0.0, 1 - chinese - mixed) if side["zh_reply_rate"] is not None else 0.0,
            }
        counts = [f"{side['no_language']} of {side['replies' if key is None else 'n']}" for side in sides]
        measures = [change(sides[0][name], sides[1][name], form) for name, (_, form) in shown_measures.items()]
        cells.append((where, *measures, " → ".join(counts)))
    picture = shares("Language of the replies", rows, ("Chinese", "mixture", "another language"))
    header = ("replies to", *(words for words, _ in shown_measures.values()), "without a language")
    return [
        Heading("Language of the replies"),
        Picture("languages.svg", picture, "Language of the replies, base and tuned"),
        Table(header, cells),
        Paragraph(
            "Base → tuned, greedy replies. Replies of digits, signs or code alone have no language; the shares are of the "
            "others. LPR and WPR are the line and word pass rate of the Language Confusion Benchmark. All replies are in ",
            Link("metrics/replies.md"),
            ".",
        ),
    ]


def _answers(found: ReportInputs) -> list[Block]:
    base, tuned = (found.results[model] for model in MODELS)
    rows = [
        (
            f"{tuned['closed']} closed questions answered rightly",
            change(base["exact_match"], tuned["exact_match"], ".0%"),
        ),
        ("letters in words of jieba's dictionary", change(base["word_share"], tuned["word_share"], ".0%")),
        ("the same in the human answers", shown(tuned["human_word_share"], ".0%")),
    ]
    return [
        Heading("Sense of the replies"),
        Table(("held-out prompts", "base → tuned"), rows),
        Paragraph(
            "A closed question has a Chinese human answer of at most 40 characters; a right reply is that answer, apart "
            "from punctuation, spaces, width and case. Words have two or more characters; letters of other languages "
            "belong to none."
        ),
    ]


def _first_replies(found: ReportInputs) -> list[Block]:
    base, tuned = (found.prompts[model] for model in MODELS)
    kind = base[0]["kind"]
    rows = [
        (one["prompt"], one["reply"] or "(empty)", other["reply"] or "(empty)")
        for one, other in zip(base, tuned, strict=True)
        if one["kind"] == kind
    ]
    return [
        Heading("Table 1: first replies"),
        Paragraph(
            "In the paper the base answers these prompts in English or in a mixture, and the tuned model in Chinese. Measured:"
        ),
        Table(("prompt", "base", "tuned"), rows),
    ]


def _kinds(found: ReportInputs) -> list[Block]:
    base, tuned = (found.results[model]["prompts"]["kinds"] for model in MODELS)
    rows = [
        (
            kind.replace("_", " "),
            str(score["n"]),
            *(change(base[kind][name], tuned[kind][name], form) for name, (_, form) in REPLY_MEASURES.items()),
            f"{base[kind]['no_language']} → {tuned[kind]['no_language']}",
        )
        for kind, score in base.items()
    ]
    header = ("kind", "prompts", *(words for words, _ in REPLY_MEASURES.values()), "without a language")
    return [
        Heading("Replies by kind of prompt"),
        Paragraph(
            "Base → tuned, on the prompts of ",
            Link("samples/prompts.yaml"),
            ", whose kinds are those of the paper's appendix; - where no reply has a language.",
        ),
        Table(header, rows, frozenset({1})),
    ]


def _rounds(found: ReportInputs) -> list[Block]:
    quoted = {row["name"]: row for row in found.paper["table_2"]}
    total = {key: sum(row[key] for row in found.paper["table_2"]) for key in ("single_round", "multiple_rounds")}
    rows = []
    for name, counts in (*found.clean["sources"].items(), ("total", found.clean["total"])):
        paper = quoted.get(name) if name != "total" else total
        columns = ("read_single_round", "read_multiple_rounds", "single_round", "multiple_rounds")
        rows.append(
            [
                name,
                *(f"{paper[key]:,}" if paper else "-" for key in ("single_round", "multiple_rounds")),
                *(f"{counts[key]:,}" for key in columns),
            ]
        )
    header = ("data set", "paper: single (quoted)", "multiple (quoted)", "read: single", "multiple")
    return [Heading("Table 2: rounds"), Table((*header, "kept: single", "multiple"), rows, frozenset(range(1, 7)))]


def _topics(found: ReportInputs) -> list[Block]:
    paper = found.paper["figure_1"]
    topics = dict(sorted(found.clean["topics"].items(), key=lambda item: (-item[1], item[0])))
    return [
        Heading("Figure 1: topics"),
        Paragraph(
            f"Quoted: {paper['categories']} categories, the largest {', '.join(paper['largest'])}. "
            "Measured, conversations kept by clean:"
        ),
        Picture("topics.svg", bars("Conversations by topic", topics), "Conversations by topic"),
    ]


def _memory(found: ReportInputs) -> list[Block]:
    paper, memory = found.paper["table_4"], found.results["tuned"]["memory"]
    rows = [
        ("training", f"{paper['training']} (its repository: {paper['training_by_the_repository']})", "-", "-"),
        ("inference", str(paper["inference"]), "-", "-"),
        ("weights of Mixtral-8x7B in these bits", "-", _gib(memory["planned_mixtral_8x7b"]), "-"),
        ("weights of this run's model", "-", _gib(memory["planned"]), _gib(memory["held"])),
    ]
    for name, value in found.sft.items():
        if "memory" in name and isinstance(value, int):
            rows.append((f"training: {name}", "-", "-", _gib(value)))
    return [
        Heading("Table 4: memory, GiB"),
        Table(("what", "paper (quoted)", "predicted", "measured"), rows, frozenset({2, 3})),
        Paragraph(
            "Predicted: by arithmetic on the shapes, before loading. Measured: bytes of the loaded tensors. Weights "
            "are what stays on the card; activations, caches and the optimiser come on top."
        ),
    ]


def _loss(found: ReportInputs) -> list[Block]:
    series = {
        name: [(float(row["step"]), float(row[key])) for row in found.curve if row.get(key)]
        for name, key in (("training", "loss"), ("held out", "held_out_loss"))
    }
    picture = lines("Loss of the tune", series, "optimiser step", "nats per token")
    base, tuned = (found.results[model]["loss"] for model in MODELS)
    return [
        Heading("Loss"),
        Picture("loss.svg", picture, "Training and held-out loss by step"),
        Paragraph(f"Mean loss per answer token of the held-out rows: {change(base, tuned, '.4f')} nats."),
    ]


def _merge(found: ReportInputs) -> list[Block]:
    counts = {name: value for name, value in found.merge.items() if name != "drift"}
    rows = [(name, _number(value)) for name, value in counts.items()]
    blocks: list[Block] = [Heading("Merge"), Table(("measure", "value"), rows, frozenset({1}))]
    drift = found.merge.get("drift")
    if drift:
        pairs = {name: value for name, value in drift.items() if isinstance(value, Mapping)}
        columns = list(next(iter(pairs.values()), {}))
        counts = ", ".join(f"{name} {_number(value)}" for name, value in drift.items() if name not in pairs)
        blocks += [
            Heading("Drift of the merge"),
            Paragraph(
                f"Logits beside those of the adapter on the base as it was trained ({counts}). adapter_effect is what the "
                "adapter changes in that base, the measure for the other rows."
            ),
            Table(
                ("model", *columns),
                [(name, *(_number(values.get(column, "-")) for column in columns)) for name, values in pairs.items()],
                frozenset(range(1, len(columns) + 1)),
            ),
        ]
    return blocks


def _number(value: object) -> str:
    if type(value) is int:
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _inputs(found: ReportInputs) -> list[Block]:
    rows = [
        (source["path"], source["uri"], source["licence"], f"{source['bytes']:,}", source["dvc_hash"])
        for source in found.inputs
    ]
    rows += [(path, "stage", "", "", digest) for path, digest in found.hashes.items()]
    return [
        Heading("Inputs"),
        Paragraph(
            "The hash by which DVC knows each input; a folder's ends in .dir, and a model is represented by its manifest, "
            "which holds the SHA-256 of every file. SHA-256 over the files of the models: "
            + ", ".join(f"{m} {found.results[m]['protocol']['model_sha256']}" for m in MODELS)
            + "."
        ),
        Table(("path", "origin", "licence", "bytes", "DVC hash"), rows, frozenset({3})),
    ]


def _gib(size: int) -> str:
    return f"{size / GIB:.3f}"
