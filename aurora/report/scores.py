"""Scores in the report: base against tuned, the paper's models, categories, subjects, protocol."""

from collections.abc import Mapping

from aurora.report.blocks import Block, Heading, Paragraph, Picture, Table
from aurora.report.charts import Interval, intervals
from aurora.report.comparison import Difference, clopper_pearson, compare_questions
from aurora.report.inputs import MODELS, NAMES, SPLITS, ReportInputs, change, shown

CHANCE = 0.25  # four choices


def findings(found: ReportInputs) -> str:
    """Two sentences that say what came of the run."""
    base, tuned = (found.results[model] for model in MODELS)
    replies = " to ".join(shown(side["zh_reply_rate"], ".0%") for side in (base, tuned))
    beyond = [item for item in _differences(found) if not item.by_chance]
    if beyond:
        scores = ", ".join(f"{NAMES[item.name]} by {100 * (item.after - item.before):+.1f} points" for item in beyond)
        scores = f"Beyond chance, accuracy changes on {scores}"
    else:
        scores = "No difference in accuracy on the benchmarks is beyond chance"
    counts = ", ".join(f"{tuned[name]['n']:,} of {NAMES[name]}" for name in NAMES if name in tuned)
    return (
        f"The tune takes the share of replies in Chinese from {replies} on held-out prompts, and the held-out loss from "
        f"{base['loss']:.3f} to {tuned['loss']:.3f} nats per token. {scores} ({counts} questions)."
    )


def benchmarks(found: ReportInputs) -> list[Block]:
    """Base against tuned on the same questions, with intervals."""
    base, tuned = (found.results[model] for model in MODELS)
    rows = [
        (
            NAMES[item.name],
            f"{item.count:,}",
            change(100 * item.before, 100 * item.after, ".2f"),
            f"{100 * (item.after - item.before):+.2f} ({100 * item.low:+.2f} to {100 * item.high:+.2f})",
            f"{item.gained} gained, {item.lost} lost",
            "within chance" if item.by_chance else "beyond chance",
        )
        for item in _differences(found)
    ]
    picture = intervals(
        "Accuracy with 95 % intervals",
        {
            NAMES[name]: {model: _interval(found.results[model][name]) for model in MODELS}
            for name in NAMES
            if name in base and name in tuned
        },
        MODELS,
        "accuracy",
        CHANCE,
    )
    header = ("benchmark", "questions", "base → tuned, %", "difference, points (95 % interval)", "answers", "verdict")
    return [
        Heading("Benchmarks"),
        Picture("accuracy.svg", picture, "Accuracy of base and tuned on the benchmarks, with chance"),
        Table(header, rows, frozenset({1})),
        Paragraph(
            "Intervals of differences are exact (McNemar), on the same questions; one that holds zero may be chance. "
            f"{_too_long(found)}"
        ),
    ]


def _interval(score: Mapping) -> Interval:
    reach = 1.96 * score["stderr"]
    return Interval(score["acc"], score["acc"] - reach, score["acc"] + reach)


def _differences(found: ReportInputs) -> list[Difference]:
    by_name = {item.name: item for item in compare_questions(*(found.questions[model] for model in MODELS))[0]}
    return [by_name[name] for name in NAMES if name in by_name]


def _too_long(found: ReportInputs) -> str:
    counts = " and ".join(f"{found.results[model]['too_long']:,} ({model})" for model in MODELS)
    return f"Prompts longer than the context, cut at their beginning: {counts}."


def all_models(found: ReportInputs) -> list[Block]:
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
        Table(("model", *NAMES.values(), "source"), ours + rows, frozenset({1, 2, 3}), strong=frozenset({0, 1})),
        Paragraph(
            f"Accuracy in %, ours ± one standard error. Ours: {'; '.join(asked)}. Quoted: 5 shots; see Protocol for "
            "what keeps the two from being the same measurement."
        ),
    ]


def categories(found: ReportInputs) -> list[Block]:
    """MMLU and CMMLU by category."""
    quoted, (base, tuned) = found.paper["categories"], (found.results[m]["categories"] for m in MODELS)
    rows = []
    for name in sorted(quoted.keys() | tuned.keys()):
        paper = f"{quoted[name]:g}" if name in quoted else "-"
        count = f"{tuned[name]['n']:,}" if name in tuned else "-"
        rows.append((_words(name), paper, _score(base.get(name)), _score(tuned.get(name)), count))
    header = ("category", f"{found.paper['our_name']} (quoted)", "base", "tuned", "questions")
    return [Heading("MMLU and CMMLU by category"), Table(header, rows, frozenset({1, 2, 3, 4}))]


def subjects(found: ReportInputs) -> list[Block]:
    """Accuracy of both models by subject."""
    scores = {model: found.results[model]["subjects"] for model in MODELS}
    rows = {
        name.replace("_", " "): {model: _binomial(scores[model][name]) for model in MODELS if name in scores[model]}
        for name in sorted(scores["tuned"])
    }
    picture = intervals("Accuracy by subject, 95 % intervals", rows, MODELS, "accuracy", CHANCE)
    return [Heading("Accuracy by subject"), Picture("subjects.svg", picture, "Accuracy by subject, base and tuned")]


def _binomial(score: Mapping) -> Interval:
    right = round(score["acc"] * score["n"])
    return Interval(score["acc"], *clopper_pearson(right, score["n"]))


def protocol(found: ReportInputs) -> list[Block]:
    """What differs between the two evaluations."""
    paper, ours = found.paper["protocol"], found.results["tuned"]["protocol"]
    tasks = ours["tasks"]
    counts = ", ".join(f"{NAMES[name]} {SPLITS[name]} {found.results['tuned'][name]['n']:,}" for name in tasks)
    shots = ", ".join(f"{NAMES[name]} {task['num_fewshot']}" for name, task in tasks.items())
    quantization = ours["quantization"]
    double = ", double quantisation" if quantization["double_quant"] else ""
    weights = f"NF4{double}" if quantization["bits"] == 4 else f"{quantization['bits']} bits"
    here = {
        "questions": counts,
        "prompt": f"those of lm-eval {ours['lm_eval']}, Chinese for C-Eval and CMMLU",
        "shots": f"{shots}; the first of the dev split, the same for all questions of a subject",
        "form": "the chat template around the whole" if ours["chat_template"] else "plain text, no chat template",
        "answer": "the largest of the four letters' log-probabilities behind the prompt",
        "average": "over questions",
    }
    rows = [(name, paper[name], text) for name, text in here.items()]
    rows.append(("weights", "4 bits", f"{weights}, computed in {quantization['compute_dtype']}"))
    rows.append(("context", "-", f"{ours['max_length']:,} tokens"))
    return [Heading("Protocol"), Table(("what", "paper (quoted)", "here"), rows)]


def _score(score: Mapping | None) -> str:
    return f"{100 * score['acc']:.2f} ± {100 * score['stderr']:.2f}" if score else "-"


def _words(name: str) -> str:
    # mmlu_social_sciences -> MMLU, social sciences
    benchmark, _, category = name.partition("_")
    return f"{NAMES.get(benchmark, benchmark)}, {category.replace('_', ' ')}"
