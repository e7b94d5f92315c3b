"""BLEU-4 and ROUGE of replies against written answers, as the paper's repository computes them.

Reference: src/llmtuner/train/sft/metric.py of github.com/WangRongsheng/Aurora at b7c78852. BLEU is over characters,
smoothed by nltk's method 3; ROUGE is the F score of rouge-chinese over jieba's words.
"""

from collections.abc import Sequence

from aurora.eval.chinese_words import words

NAMES = {"rouge-1": "rouge_1", "rouge-2": "rouge_2", "rouge-l": "rouge_l"}


def overlap_metrics(replies: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Means over the replies, in percent: bleu_4, rouge_1, rouge_2, rouge_l. An empty reply has 0 in each."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    rouge, smoothing = Rouge(), SmoothingFunction().method3
    totals = dict.fromkeys(("bleu_4", *NAMES.values()), 0.0)
    for reply, answer in zip(replies, answers, strict=True):
        hypothesis, reference = " ".join(words(reply)), " ".join(words(answer))
        if not hypothesis.split() or not reference.split():
            continue
        totals["bleu_4"] += sentence_bleu([list(answer)], list(reply), smoothing_function=smoothing)
        found: dict = rouge.get_scores(hypothesis, reference)[0]
        for name, score in found.items():
            totals[NAMES[name]] += score["f"]
    return {name: 100 * total / max(1, len(replies)) for name, total in totals.items()}
