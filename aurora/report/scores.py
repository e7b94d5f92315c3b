"""The part of the report about answers: base against tuned, the paper's models, categories, subjects, protocol."""

from collections.abc import Mapping

from aurora.report.blocks import Block, Heading, Paragraph, Picture, Table
from aurora.report.charts import dots
from aurora.report.comparison import Difference, compare_questions
from aurora.report.inputs import MODELS, NAMES, REPLY_MEASURES, SPLITS, Gathered, shown

CHANCE = 0.25  # four choices


def outcome(found: Gathered) -> list[Block]:
    """Base against tuned: loss, replies, benchmarks with intervals."""
    base, tuned = (found.results[model] for model in MODELS)
    rows = [["held-out loss, nats a token", f"{base['loss']:.4f}", f"{tuned['loss']:.4f}", ""]]
    for where, sides, count in (
        ("held-out prompts", (base, tuned), "replies"),
        ("fixed prompts", (base["prompts"], tuned["prompts"]), "n"),
    ):
        for name in REPLY_MEASURES:
            rows.append([f"{name}, {where}", *(shown(side[name], ".4g") for side in sides), ""])
        counts = [f"{side['no_language']} of {side[count]}" for side in sides]
        rows.append([f"no_language, {where}", *counts, ""])
    for item in _differences(found):
        scores = [_score(side[item.name]) for side in (base, tuned)]
        chance = "within chance" if item.by_chance else "beyond chance"
        change = f"{100 * (item.after - item.before):+.2f} ({100 * item.low:+.1f} to {100 * item.high:+.1f}), {chance}"
        rows.append([f"{NAMES[item.name]}, accuracy in %", *scores, change])
    return [
        Heading("Base and tuned"),
        Table(("measure", "base", "tuned", "tuned - base (95 % interval)"), rows, frozenset({1, 2})),
        Paragraph(
            "Intervals are McNemar's, exact, on the same questions: one that holds zero may be chance. "
            f"{_too_long(found)} mean_length is in characters. no_language counts replies of digits, signs or code alone: "
            "zh_reply_rate and mixed_rate are shares of the others."
        ),
    ]


def _differences(found: Gathered) -> list[Difference]:
    by_name = {
        item.name: item for item in compare_questions(*(found.questions[model] for model in MODELS))[0]
    }
    return [by_name[name] for name in NAMES if name in by_name]


def _too_long(found: Gathered) -> str:
    counts = " and ".join(f"{found.results[model]['too_long']:,} ({model})" for model in MODELS)
    return (
        f"Prompts longer than the context, cut at their beginning and listed in questions.parquet: {counts}."
    )


def all_models(found: Gathered) -> list[Block]:
    """The paper's Table 3 with the two models of this run."""
    rows = [[row["model"], *(f"{row[name]:g}" for name in NAMES), "quoted"] for row in found.paper["table_3"]]
    ours = [
        [f"this run, {model}", *(_score(found.results[model].get(name)) for name in NAMES), "measured"]
        for model in MODELS
    ]
    asked = []
    tasks = found.results["tuned"]["protocol"]["tasks"]
    for name, task in tasks.items():
        count = found.results["tuned"][name]["n"]
        limit = "" if task["limit"] is None else f" (the first {task['limit']} of each subject)"
        asked.append(f"{NAMES[name]} {count:,} questions{limit}, {task['num_fewshot']} shots")
    return [
        Heading("Table 3: all models"),
        Table(("model", *NAMES.values(), "source"), ours + rows, frozenset({1, 2, 3})),
        Paragraph(
            f"Accuracy in %, ours ± one standard error. Ours: {'; '.join(asked)}. Quoted: 5 shots; see Protocol for "
            "what keeps the two from being the same measurement."
        ),
    ]


def categories(found: Gathered) -> list[Block]:
    """MMLU and CMMLU by category."""
    quoted, (base, tuned) = found.paper["categories"], (found.results[m]["categories"] for m in MODELS)
    rows = []
    for name in sorted(quoted.keys() | tuned.keys()):
        paper = f"{quoted[name]:g}" if name in quoted else "-"
        count = f"{tuned[name]['n']:,}" if name in tuned else "-"
        rows.append((name, paper, _score(base.get(name)), _score(tuned.get(name)), count))
    header = ("category", f"{found.paper['our_name']} (quoted)", "base", "tuned", "n")
    return [Heading("MMLU and CMMLU by category"), Table(header, rows, frozenset({1, 2, 3, 4}))]


def subjects(found: Gathered) -> list[Block]:
    """Accuracy of both models by subject."""
    scores = {model: found.results[model]["subjects"] for model in MODELS}
    rows = {
        name: {model: scores[model][name]["acc"] for model in MODELS if name in scores[model]}
        for name in sorted(scores["tuned"])
    }
    picture = dots("Accuracy by subject; the line is chance", rows, MODELS, "accuracy", CHANCE)
    return [
        Heading("Accuracy by subject"),
        Picture("subjects.svg", picture, "Accuracy by subject, base and tuned"),
    ]


def protocol(found: Gathered) -> list[Block]:
    """What differs between the two evaluations."""
    paper, ours = found.paper["protocol"], found.results["tuned"]["protocol"]
    tasks = ours["tasks"]
    counts = ", ".join(
        f"{NAMES[name]} {SPLITS[name]} {found.results['tuned'][name]['n']:,}" for name in tasks
    )
    shots = ", ".join(f"{NAMES[name]} {task['num_fewshot']}" for name, task in tasks.items())
    quantization = ours["quantization"]
    double = ", double quantisation" if quantization["double_quant"] else ""
    weights = f"NF4{double}" if quantization["bits"] == 4 else f"{quantization['bits']} bits"
    here = {
        "questions": counts,
        "prompt": f"those of lm-eval {ours['lm_eval']}, Chinese for C-Eval and CMMLU",
        "shots": f"{shots}; the first of the dev split, the same for all questions of a subject",
        "form": "the chat template around the whole"
        if ours["chat_template"]
        else "plain text, no chat template",
        "answer": "the largest of the four letters' log-probabilities behind the prompt",
        "average": "over questions",
    }
    rows = [(name, paper[name], text) for name, text in here.items()]
    rows.append(("weights", "4 bits", f"{weights}, computed in {quantization['compute_dtype']}"))
    rows.append(("context", "-", f"{ours['max_length']:,} tokens"))
    return [Heading("Protocol"), Table(("what", "paper (quoted)", "here"), rows)]


def _score(score: Mapping | None) -> str:
    return f"{100 * score['acc']:.2f} ± {100 * score['stderr']:.2f}" if score else "-"
