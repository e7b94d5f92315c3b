"""The little world: its sentences are used once, its facts are one to one, its samples are those in samples/."""

import json
import random
from pathlib import Path

import pytest

from miniature import samples
from miniature.exams import Papers
from miniature.world import BENCHMARKS, World, share


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_a_fact_has_one_answer(world: World) -> None:
    for relation, facts in world.facts.items():
        for language in ("zh", "en"):
            assert len({fact.x[language] for fact in facts}) == len(facts), (relation, language)
            assert len({fact.y[language] for fact in facts}) >= 4, (relation, language)
            pairs = {(fact.y["zh"], fact.y["en"]) for fact in facts}
            assert len(pairs) == len({answer for answer, _ in pairs}), relation


def test_training_held_out_and_exam_questions_share_facts_but_no_sentence(world: World) -> None:
    exchanges = world.exchanges()
    base = {prompt for exchange in exchanges if not exchange.sampled for prompt, _ in exchange.zh[:1]}
    sampled = {exchange.zh[0][0] for exchange in exchanges if exchange.sampled and len(exchange.zh) == 1}
    practice = {text for language in ("zh", "en") for text, _ in world.practice(language)}
    exams = {
        question.text
        for name in BENCHMARKS
        for shots, questions in world.benchmark(name).values()
        for question in shots + questions
    }
    assert len(exams) > 380
    assert not exams & practice
    assert not sampled & base and not sampled & practice
    assert not exams & (sampled | base)


def test_the_samples_are_what_the_generator_writes(tmp_path: Path, monkeypatch, root: Path) -> None:
    monkeypatch.setattr(samples, "SAMPLES", tmp_path)
    samples.write()
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    tracked = {
        path.relative_to(root / "samples"): path.read_bytes()
        for top in {path.parts[0] for path in written}
        for path in (root / "samples" / top, *(root / "samples" / top).rglob("*"))
        if path.is_file()
    }
    assert written == tracked


def test_no_held_out_sentence_stands_in_the_base_s_reading(world: World, root: Path) -> None:
    prompts = set()
    for name in ("alpaca_data_zh_51k", "alpaca_gpt4_data_zh"):
        for row in json.loads((root / f"samples/{name}.json").read_text(encoding="utf-8")):
            prompts.add("\n".join(filter(None, (row.get("instruction"), row.get("input")))))
    base = {exchange.zh[0][0] for exchange in world.exchanges() if not exchange.sampled}
    greetings = {row[0] for row in world.lists["greetings"]}
    assert len(prompts) > 400 and not prompts & base - greetings


def test_papers_mark_the_right_options(world: World) -> None:
    order, papers = random.Random(3), Papers(world)
    for count in (1, 3, 6):
        for name in BENCHMARKS:
            paper = papers.draw(order, count, name, 0.5)
            lines = paper.text.split("\n")
            letters = [line.split()[-1] for line in lines if line.startswith(("答案：", "Answer:"))]
            assert letters == ["ABCD"[answer] for answer in paper.answers]
            for answer, options in zip(paper.answers, paper.options, strict=True):
                assert f"{'ABCD'[answer]}. {options[answer]}" in lines and len(set(options)) == 4


def test_a_share_depends_on_the_text_alone() -> None:
    assert share("你好") == share("你好") != share("您好")
    assert 0 <= share("a", "b") < 1
