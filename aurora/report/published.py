"""The part of the report that holds this run's numbers against others': published scores, forgetting, protocols."""

from collections.abc import Mapping

from aurora.report.blocks import Block, Heading, Paragraph, Picture, Table
from aurora.report.charts import lines
from aurora.report.comparison import ledger
from aurora.report.inputs import MODELS, NAMES, OVERLAP_MEASURES, ReportInputs, change, shown

LANGUAGES = {"ceval": "Chinese", "cmmlu": "Chinese", "mmlu": "English"}  # of each benchmark's questions
SHARES = {"lpr": "LPR", "wpr": "WPR", "zh_reply_rate": "in Chinese"}  # of replies
WIDTH = 1.96  # standard errors on each side of a 95 % interval


def base_scores(found: ReportInputs) -> list[Block]:
    """Published scores of the base beside ours, and whether ours is within their band."""
    published, ours = found.paper["published"], found.results["base"]
    columns = ("ceval", "ceval_test", "mmlu", "cmmlu")
    rows = [
        [row["model"], *(f"{row[name]:g}" if name in row else "-" for name in columns), row["source"]]
        for row in published
    ]
    measured = [_percent(ours.get(name)) for name in columns]
    bands = {
        name: [row[name] for row in published if row["untuned"] and name in row] for name in ("ceval", "mmlu", "cmmlu")
    }
    flags = [_flag(ours.get(name), bands.get(name)) for name in columns]
    paper = next(row for row in found.paper["table_3"] if row["model"] == found.paper["our_name"])
    below = ", ".join(
        f"{NAMES[name]} {paper[name]:g} against {_range(values)}"
        for name in ("mmlu", "cmmlu")
        if (values := [row[name] for row in published if row["untuned"] and "Instruct" in row["model"] and name in row])
    )
    return [
        Heading("Published scores of the untuned base"),
        Paragraph(
            f"The paper's tuned model is about two points below the published scores of the untuned base it was tuned from: "
            f"{below}. The paper does not measure its base, so that it cannot say what its tune gained or lost."
        ),
        Table(
            ("model", "C-Eval val", "C-Eval test", "MMLU", "CMMLU", "source"),
            [["this run, base", *measured, "measured"], ["outside the band of untuned bases?", *flags, ""], *rows],
            frozenset({1, 2, 3, 4}),
        ),
    ]


def _flag(score: Mapping | None, band: list[float] | None) -> str:
    """Whether the 95 % interval of a score reaches the band of published ones."""
    if not score or not band:
        return "-"
    low, high = (100 * (score["acc"] + side * WIDTH * score["stderr"]) for side in (-1, 1))
    if high < min(band):
        return f"below {_range(band)}"
    return f"above {_range(band)}" if low > max(band) else f"within {_range(band)}"


def _range(values: list[float]) -> str:
    return f"{min(values):g}" if min(values) == max(values) else f"{min(values):g} to {max(values):g}"


def forgetting(found: ReportInputs) -> list[Block]:
    """What the tune gained and lost, paired by question."""
    rows = []
    for item in ledger(found.questions["base"], found.questions["tuned"], LANGUAGES, found.categories):
        name = f"all questions in {item.name}" if item.name in LANGUAGES.values() else NAMES.get(item.name, item.name)
        interval = f"{100 * item.low:+.2f} to {100 * item.high:+.2f}"
        rows.append(
            (
                name,
                f"{item.count:,}",
                f"{100 * item.before:.2f}",
                f"{100 * item.after:.2f}",
                f"{item.gained:,}",
                f"{item.lost:,}",
                f"{100 * (item.after - item.before):+.2f} ({interval})",
                "within chance" if item.by_chance else "gained" if item.after > item.before else "forgotten",
            )
        )
    header = ("questions", "n", "base", "tuned", "gained", "lost", "tuned - base (95 % interval)", "verdict")
    return [
        Heading("Ledger of forgetting"),
        Paragraph(
            "Paired by question under lm-eval's protocol: gained are those that only the tuned model answers rightly, lost "
            "those that only the base does. Intervals are McNemar's, exact. C-Eval and CMMLU ask in Chinese, MMLU in English."
        ),
        Table(header, rows, frozenset(range(1, 7))),
    ]


def protocols(found: ReportInputs) -> list[Block]:
    """Both protocols in one table, ours and quoted; nothing where only one was run."""
    sides = [found.results[model].get("paper") or {} for model in MODELS]
    if not all(sides):
        return []
    paper = next(row for row in found.paper["table_3"] if row["model"] == found.paper["our_name"])
    quoted = found.paper["categories"]
    rows = []
    for name in NAMES:
        if name in found.results["tuned"]:
            scores = [found.results[model].get(name) for model in MODELS]
            rows.append([NAMES[name], "lm-eval", *map(_percent, scores), "-", _count(scores[-1])])
        for key in sides[-1]:
            benchmark, _, language = key.rpartition("_")
            if benchmark != name:
                continue
            scores = [side.get(key) or {} for side in sides]
            prompt = f"paper, {'English' if language == 'en' else 'Chinese'} prompt"
            rows.append([NAMES[name], prompt, *map(_percent, scores), f"{paper[name]:g}", _count(scores[-1])])
            for category in sorted(scores[-1]["categories"]):
                parts = [score.get("categories", {}).get(category) for score in scores]
                count = _count(parts[-1])
                rows.append([category, prompt, *map(_percent, parts), f"{quoted.get(category, '-')}", count])
    return [
        Heading("Both protocols"),
        Table(("questions", "protocol", *MODELS, "paper, tuned (quoted)", "n"), rows, frozenset({2, 3, 4, 5})),
        Paragraph(
            "Accuracy in %, ours ± one standard error. The paper's C-Eval score may be of the test split, whose answers are "
            "not public; ours is of val."
        ),
    ]


def confusion(found: ReportInputs) -> list[Block]:
    """The Language Confusion Benchmark by task and set; nothing where no such source was answered."""
    sides = [_sets(found.results[model]) for model in MODELS]
    rows = []
    for task, name in sides[-1]:
        base, tuned = (side.get((task, name), {}) for side in sides)
        scores = [change(base.get(measure), tuned.get(measure), ".0%") for measure in SHARES]
        rows.append([f"{task} {name}", str(tuned["n"]), *scores, "base → tuned, measured"])
    if not rows:
        return []
    for row in found.paper["language_confusion"]:
        cells = [shown(row["lpr"], ".0%"), shown(row["wpr"], ".0%"), "-"]
        rows.append([f"{row['task']} {row['set']}", "-", *cells, f"{row['model']}, quoted"])
    return [
        Heading("Language Confusion Benchmark"),
        Paragraph(
            "Prompts for which a reply in Chinese is wanted. LPR: share of replies without a line in another language; WPR: share "
            "of those that have no English word either. Ours are greedy, the quoted replies were drawn at temperature 0.3."
        ),
        Table(("prompts", "n", *SHARES.values(), "source"), rows, frozenset({1})),
    ]


def _sets(results: Mapping) -> dict[tuple[str, str], Mapping]:
    sources = (results.get("language_confusion") or {}).values()
    return {(task, name): part for tasks in sources for task, sets in tasks.items() for name, part in sets.items()}


def medical(found: ReportInputs) -> list[Block]:
    """CMB beside what the paper's repository gives; nothing where it was not answered."""
    sides = [found.results[model].get("medical") or {} for model in MODELS]
    rows = [
        (name if part is None else f"{name}, {part}", *(_percent(side) for side in pair), _count(pair[-1]), "measured")
        for name, after in sides[-1].items()
        for part in (None, *after["types"])
        for pair in [[side[name] if part is None else side[name]["types"][part] for side in sides]]
    ]
    if not rows:
        return []
    rows += [(f"cmb, {row['model']}", "-", f"{row['cmb']:g}", "", "quoted") for row in found.paper["medical"]]
    return [
        Heading("Medical examination: CMB"),
        Table(("questions", *MODELS, "n", "source"), rows, frozenset({1, 2, 3})),
    ]


def router(found: ReportInputs) -> list[Block]:
    """What the router does, Chinese against English text; nothing where it was not measured."""
    sides = [found.results[model].get("router") or {} for model in MODELS]
    if not all(sides):
        return []
    rows = []
    for language, after in sides[-1].items():
        parts = [sides[0][language], after]
        changed = found.router_changes[language]
        rows.append(
            [
                language,
                f"{after['tokens']:,}",
                *(f"{part['entropy']:.3f}" for part in parts),
                *(f"{100 * part['max_load']:.1f}" for part in parts),
                f"{100 * sum(changed) / len(changed):.2f}",
            ]
        )
    header = ("text", "tokens", *(f"{name} {model}" for name in ("entropy", "largest load, %") for model in MODELS))
    series = {
        language: [(float(layer), 100 * share) for layer, share in enumerate(shares, start=1)]
        for language, shares in found.router_changes.items()
    }
    picture = lines("Tokens whose first expert the tune changed", series, "layer", "% of tokens")
    return [
        Heading("The router"),
        Paragraph(
            "On questions of the benchmarks. Entropy of the router's probabilities in nats, the mean over tokens and layers; the "
            "largest share of choices that one expert of one layer has; and the tokens whose first expert the tune changed."
        ),
        Table((*header, "first expert changed, %"), rows, frozenset(range(1, len(header) + 1))),
        Picture("router.svg", picture, "Share of tokens whose first expert changed, by layer and language"),
    ]


def checkpoints(found: ReportInputs) -> list[Block]:
    """Scores by step, beside the paper's; the picture is of ours."""
    measures = {"loss": "loss", "zh_reply_rate": "in Chinese", "lpr": "LPR"} | OVERLAP_MEASURES
    rows, series = [], {}
    for score in found.checkpoints:
        rows.append([f"{score['step']:,}", *(shown(score[name], ".4g") for name in measures), "measured"])
        for name in ("bleu_4", "rouge_l"):
            series.setdefault(OVERLAP_MEASURES[name], []).append((float(score["step"]), score[name]))
        benchmarks = {name: score[name]["acc"] for name in NAMES if name in score}
        for name, accuracy in benchmarks.items():
            rows[-1][-1] += f"; {NAMES[name]} {100 * accuracy:.2f} %"
    base, tuned = (found.results[model] for model in MODELS)
    for name, side in (("base", base), ("tuned", tuned)):
        rows.append([name, *(shown(side[measure], ".4g") for measure in measures), "measured"])
    for row in found.paper["checkpoints"]:
        rows.append([f"{row['step']:,}", "-", "-", "-", *(f"{row[name]:g}" for name in OVERLAP_MEASURES), "quoted"])
    blocks: list[Block] = [
        Heading("Scores by step"),
        Paragraph(
            "BLEU-4 and ROUGE in %, of replies to held-out prompts against the written answers. The paper's replies are to "
            "prompts of its own, which it does not publish."
        ),
        Table(("step", *measures.values(), "source"), rows, frozenset(range(1, len(measures) + 1))),
    ]
    if found.checkpoints:
        picture = lines("Replies by optimiser step", series, "optimiser step", "%")
        blocks.append(Picture("checkpoints.svg", picture, "BLEU-4 and ROUGE-L by optimiser step"))
    return blocks


def other_tasks(found: ReportInputs) -> list[Block]:
    """Further tasks by lm-eval's names; nothing where none was asked for."""
    sides = [found.results[model].get("other") or {} for model in MODELS]
    rows = [
        (task, name.partition(",")[0], *(shown(side.get(task, {}).get(name), ".4f") for side in sides))
        for task, metrics in sides[-1].items()
        for name in metrics
        if "stderr" not in name
    ]
    return [Heading("Further tasks"), Table(("task", "metric", *MODELS), rows, frozenset({2, 3}))] if rows else []


def _percent(score: Mapping | None) -> str:
    return f"{100 * score['acc']:.2f} ± {100 * score['stderr']:.2f}" if score else "-"


def _count(score: Mapping | None) -> str:
    return f"{score['n']:,}" if score else "-"
