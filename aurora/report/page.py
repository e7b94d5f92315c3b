"""REPORT.md as blocks: the paper's tables and figures, quoted, beside what the stages of this run measured."""

from collections.abc import Mapping

from aurora.report.blocks import Block, Heading, Paragraph, Picture, Table
from aurora.report.charts import bars, lines
from aurora.report.inputs import MODELS, REPLY_MEASURES, Gathered, shown
from aurora.report.scores import all_models, categories, outcome, protocol, subjects

GIB = 2**30


def report_blocks(found: Gathered) -> list[Block]:
    """The whole page."""
    source = found.paper["source"]
    return [
        Heading("Report", 1),
        Paragraph(
            f"Written by the report stage. Quoted numbers are those of {source} and its repository "
            "(aurora/report/paper.yaml); all others were measured by the stages of this run."
        ),
        *outcome(found),
        *_first_replies(found),
        *_kinds(found),
        *_rounds(found),
        *_topics(found),
        *all_models(found),
        *categories(found),
        *subjects(found),
        *protocol(found),
        *_memory(found),
        *_loss(found),
        *_merge(found),
        *_inputs(found),
    ]


def _first_replies(found: Gathered) -> list[Block]:
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
            "In the paper the base answers these prompts in English or in a mixture, and the tuned model in Chinese. "
            "metrics/replies.md has all replies of this run, to the fixed prompts and to held-out ones."
        ),
        Table(("prompt", "base, measured", "tuned, measured"), rows),
    ]


def _kinds(found: Gathered) -> list[Block]:
    base, tuned = (found.results[model]["prompts"]["kinds"] for model in MODELS)
    rows = [
        (
            kind,
            str(score["n"]),
            *(str(side[kind]["no_language"]) for side in (base, tuned)),
            *(shown(side[kind][name], ".2f") for name in REPLY_MEASURES[:3] for side in (base, tuned)),
            *(shown(side[kind]["mean_length"], ".0f") for side in (base, tuned)),
        )
        for kind, score in base.items()
    ]
    measures = ("no_language", *REPLY_MEASURES)
    header = ("kind", "n", *(f"{name} {model}" for name in measures for model in MODELS))
    return [
        Heading("Replies by kind"),
        Paragraph(
            "Greedy replies to samples/prompts.yaml, the kinds of the paper's appendix. zh_reply_rate and mixed_rate are "
            "shares of the n - no_language replies that have words of a language; - where there is none."
        ),
        Table(header, rows, frozenset(range(1, len(header)))),
    ]


def _rounds(found: Gathered) -> list[Block]:
    quoted = {row["name"]: row for row in found.paper["table_2"]}
    total = {
        key: sum(row[key] for row in found.paper["table_2"]) for key in ("single_round", "multiple_rounds")
    }
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
    return [
        Heading("Table 2: rounds"),
        Table((*header, "kept: single", "multiple"), rows, frozenset(range(1, 7))),
    ]


def _topics(found: Gathered) -> list[Block]:
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


def _memory(found: Gathered) -> list[Block]:
    paper, memory = found.paper["table_4"], found.results["tuned"]["memory"]
    rows = [
        (
            "training",
            f"{paper['training']} (its repository: {paper['training_by_the_repository']})",
            "-",
            "-",
        ),
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


def _loss(found: Gathered) -> list[Block]:
    series = {
        name: [(float(row["step"]), float(row[key])) for row in found.curve if row.get(key)]
        for name, key in (("training", "loss"), ("held out", "held_out_loss"))
    }
    picture = lines("Loss of the tune", series, "optimiser step", "nats a token")
    return [Heading("Loss curve"), Picture("loss.svg", picture, "Training and held-out loss by step")]


def _merge(found: Gathered) -> list[Block]:
    counts = {name: value for name, value in found.merge.items() if name != "drift"}
    rows = [(name, _number(value)) for name, value in counts.items()]
    blocks = [Heading("Merge"), Table(("measure", "value"), rows, frozenset({1}))]
    drift = found.merge.get("drift")
    if drift:
        pairs = {name: value for name, value in drift.items() if isinstance(value, Mapping)}
        columns = list(next(iter(pairs.values()), {}))
        told = ", ".join(f"{name} {_number(value)}" for name, value in drift.items() if name not in pairs)
        blocks += [
            Heading("Drift of the merge"),
            Paragraph(
                f"Logits beside those of the adapter on the base as it was trained ({told}). adapter_effect is what the "
                "adapter changes in that base, the measure for the other rows."
            ),
            Table(
                ("model", *columns),
                [
                    (name, *(_number(values.get(column, "-")) for column in columns))
                    for name, values in pairs.items()
                ],
                frozenset(range(1, len(columns) + 1)),
            ),
        ]
    return blocks


def _number(value: object) -> str:
    if type(value) is int:
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _inputs(found: Gathered) -> list[Block]:
    rows = [
        (source["path"], source["uri"], source["licence"], f"{source['bytes']:,}", source["dvc_hash"])
        for source in found.inputs
    ]
    rows += [(path, "stage", "", "", digest) for path, digest in found.hashes.items()]
    return [
        Heading("Inputs"),
        Paragraph(
            "The hash by which DVC knows each input; a folder's ends in .dir, and a model stands with its manifest, "
            "which holds the SHA-256 of every file. SHA-256 over the files of the models: "
            + ", ".join(f"{m} {found.results[m]['protocol']['model_sha256']}" for m in MODELS)
            + "."
        ),
        Table(("path", "origin", "licence", "bytes", "DVC hash"), rows, frozenset({3})),
    ]


def _gib(size: int) -> str:
    return f"{size / GIB:.3f}"
