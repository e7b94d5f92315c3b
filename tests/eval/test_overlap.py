"""BLEU-4 and ROUGE against a transcription of the repository's ComputeMetrics."""

import jieba
import numpy
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_chinese import Rouge

from aurora.eval.overlap import overlap_metrics

PAIRS = [
    ("多喝水，早睡早起，注意休息。", "建议多喝温水，早点睡觉，好好休息。"),
    ("北京是中国的首都。", "北京是中国的首都。"),
    ("The capital of China is Beijing.", "中国的首都是北京。"),
    ("我好的盐盐喝敡诗敡。我好的", "锻炼身体有益健康！每天走一万步。"),
    ("", "你好"),
]


def test_scores_are_those_of_the_repository() -> None:
    scores: dict[str, list] = {"rouge-1": [], "rouge-2": [], "rouge-l": [], "bleu-4": []}
    for pred, label in PAIRS:
        hypothesis, reference = list(jieba.cut(pred)), list(jieba.cut(label))
        if len(" ".join(hypothesis).split()) == 0 or len(" ".join(reference).split()) == 0:
            result = {"rouge-1": {"f": 0.0}, "rouge-2": {"f": 0.0}, "rouge-l": {"f": 0.0}}
        else:
            result = Rouge().get_scores(" ".join(hypothesis), " ".join(reference))[0]
        for name, value in result.items():
            scores[name].append(round(value["f"] * 100, 4))
        bleu = sentence_bleu([list(label)], list(pred), smoothing_function=SmoothingFunction().method3)
        scores["bleu-4"].append(round(bleu * 100, 4))
    found = overlap_metrics(*zip(*PAIRS, strict=True))
    for name, values in scores.items():
        assert found[name.replace("-", "_")] == pytest.approx(float(numpy.mean(values)), abs=1e-4)


def test_equal_texts_have_full_scores() -> None:
    found = overlap_metrics(["北京是中国的首都。"], ["北京是中国的首都。"])
    assert all(value == pytest.approx(100) for value in found.values())
    assert overlap_metrics([""], ["北京"]) == dict.fromkeys(found, 0.0)
