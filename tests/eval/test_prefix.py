"""The prefix-sharing model against lm-eval's own backend on the same weights."""

import random
from pathlib import Path

import numpy
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from stand_ins.tiny_mixtral import load_tokenizer, tiny_model, write_model
from transformers import PreTrainedTokenizerFast

from aurora.eval.benchmarks import Subject, read_benchmark
from aurora.eval.evaluate import score_benchmarks
from aurora.eval.prefix import PassRunner, PrefixLM
from aurora.eval.resume_cache import ResumeCache
from aurora.eval.tasks import load_task
from aurora.eval.token_tree import plan_passes
from aurora.model.loading import load_model
from aurora.model.quantization import Quantization
from aurora.pipeline.params import load_params

NAMES = ("ceval", "mmlu", "cmmlu")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return load_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def requests_of(root: Path, limit: int, subjects: int | None = None, shots: int = 5) -> list[Instance]:
    """Requests of the first questions of each subject, as lm-eval's tasks build them."""
    found = []
    for name in NAMES:
        for subject in read_benchmark(root / name, name, shots, limit)[:subjects]:
            task = load_task(name, subject, shots)
            task.build_all_requests()
            found += task.instances
    return found


@pytest.fixture(scope="module")
def requests(root: Path) -> list[Instance]:
    return requests_of(root / "samples", 4, 2, 2)


def stock(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, **settings: object) -> HFLM:
    return HFLM(model, tokenizer=tokenizer, **{"batch_size": 4, "softmax_dtype": "float32"} | settings)


def model_of(kind: str, folder: Path | None = None) -> torch.nn.Module:
    """The tiny model in one of the types in which models are evaluated."""
    if kind == "NF4":
        quantization = Quantization(bits=4, double_quant=True, compute_dtype="float32")
        return load_model(write_model(folder), quantization)
    if kind == "bfloat16":
        model = type(tiny_model())(tiny_model().config)
        model.load_state_dict(tiny_model().state_dict())
        return model.to(torch.bfloat16).eval()
    return tiny_model()


@pytest.fixture(scope="module")
def expected(tokenizer: PreTrainedTokenizerFast, requests: list[Instance]) -> list[tuple[float, bool]]:
    return stock(tiny_model(), tokenizer).loglikelihood(requests, disable_tqdm=True)


def assert_close(ours: list, theirs: list, tolerance: float, changed: int = 0) -> None:
    """Log-probabilities within the tolerance, and at most `changed` of the answers by letter."""
    values = [numpy.array([value for value, _ in side]) for side in (ours, theirs)]
    assert numpy.abs(values[0] - values[1]).max() <= tolerance
    letters = [side.reshape(-1, 4).argmax(axis=1) for side in values]
    assert len(set(letters[1].tolist())) > 1  # a model with one answer to all proves nothing
    assert (letters[0] != letters[1]).sum() <= changed
    if changed == 0:
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("batch_tokens", [64, 300, 8192])
def test_answers_are_stock(
    tokenizer: PreTrainedTokenizerFast, requests: list, expected: list, batch_tokens: int
) -> None:
    ours = PrefixLM(tiny_model(), tokenizer=tokenizer, batch_tokens=batch_tokens)
    assert_close(ours.loglikelihood(requests, disable_tqdm=True), expected, 1e-5)


def test_eager_attention_gives_the_same(tokenizer: PreTrainedTokenizerFast, requests: list, expected: list) -> None:
    ours = PrefixLM(tiny_model("eager"), tokenizer=tokenizer, batch_tokens=300)
    assert_close(ours.loglikelihood(requests, disable_tqdm=True), expected, 1e-5)


def test_each_shared_token_is_forwarded_once(tokenizer: PreTrainedTokenizerFast, requests: list) -> None:
    ours = PrefixLM(tiny_model(), tokenizer=tokenizer, batch_tokens=512)
    ours.loglikelihood(requests, disable_tqdm=True)
    contexts = {tuple(tokenizer.encode(request.args[0])) for request in requests}
    prefixes = {context[:length] for context in contexts for length in range(1, len(context) + 1)}
    assert ours.tokens_forwarded == len(prefixes)


TEXTS = [
    ("one line", " A"),
    ("Frage: ü €\n答案：", " A"),
    ("a\nAnswer:", " B"),
    ("<s>a\nAnswer:", " B"),
    ("a\nAnswer: ", "C"),
    ("a\n\n", "C"),
    ("x  \n  y\nAnswer:", " longer answer"),
    ("表情😀\n答案：", " 甲"),
    ("a\nAnswer:", "\nB"),
]


def test_tokens_are_stock(tokenizer: PreTrainedTokenizerFast, requests: list) -> None:
    ours = PrefixLM(tiny_model(), tokenizer=tokenizer)
    pairs = TEXTS + [request.args for request in requests]
    assert ours.encode_pairs(pairs) == [ours._encode_pair(*pair) for pair in pairs]


def test_random_tails_are_tokenised_like_stock(tokenizer: PreTrainedTokenizerFast) -> None:
    ours = PrefixLM(tiny_model(), tokenizer=tokenizer)
    draw = random.Random(0)
    pairs = [
        (
            "".join(draw.choices("ab 中文\n:：A.", k=30)) + draw.choice(["\nAnswer:", "\n答案："]),
            draw.choice([" A", "A", " B"]),
        )
        for _ in range(300)
    ]
    assert ours.encode_pairs(pairs) == [ours._encode_pair(*pair) for pair in pairs]


def instance(kind: str, *arguments: object) -> Instance:
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("task", 0, 1))


def test_other_requests_are_the_parents(tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [("a\nAnswer:", " several words"), ("a\nAnswer:", " B"), ("", " A")]
    ours, theirs = PrefixLM(tiny_model(), tokenizer=tokenizer), stock(tiny_model(), tokenizer)
    asked = [instance("loglikelihood", *pair) for pair in pairs]
    found = [lm.loglikelihood(asked, disable_tqdm=True) for lm in (ours, theirs)]
    assert [value for value, _ in found[0]] == pytest.approx([value for value, _ in found[1]])
    assert ours.tokens_forwarded == 0
    rolling = [instance("loglikelihood_rolling", "Some text to roll over.")]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(theirs.loglikelihood_rolling(rolling))
    until = [instance("generate_until", "Hello", {"until": ["\n\n"], "max_gen_toks": 4})]
    assert ours.generate_until(until) == theirs.generate_until(until)


def test_attention_that_takes_no_mask_is_the_parents(
    tokenizer: PreTrainedTokenizerFast, requests: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = PrefixLM(tiny_model(), tokenizer=tokenizer)
    monkeypatch.setattr(tiny_model().config, "sliding_window", 4096)
    assert not ours._takes_masks()
    ours.loglikelihood(requests[:8], disable_tqdm=True)
    assert ours.tokens_forwarded == 0


@pytest.mark.minutes
def test_a_prompt_beyond_the_context_is_cut_like_stock_and_listed(
    tokenizer: PreTrainedTokenizerFast, requests: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = {request.args[0]: len(tokenizer.encode(request.args[0])) for request in requests}
    limit = sorted(lengths.values())[len(lengths) // 2]
    ours = PrefixLM(tiny_model(), tokenizer=tokenizer, max_length=limit)
    theirs = stock(tiny_model(), tokenizer, max_length=limit)
    found = [lm.loglikelihood(requests, disable_tqdm=True) for lm in (ours, theirs)]
    assert_close(*found, 1e-5)
    expected = {text: length - limit for text, length in lengths.items() if length > limit}
    assert ours.cut == expected
    ours.cut = {}
    monkeypatch.setattr(ours, "_takes_masks", lambda: False)  # the parent's way cuts too
    ours.loglikelihood(requests, disable_tqdm=True)
    assert ours.cut == expected


@pytest.mark.minutes
def test_bfloat16_stays_close(tokenizer: PreTrainedTokenizerFast, requests: list) -> None:
    model = model_of("bfloat16")
    found = [
        lm.loglikelihood(requests[:64], disable_tqdm=True)
        for lm in (PrefixLM(model, tokenizer=tokenizer, batch_tokens=512), stock(model, tokenizer))
    ]
    # bfloat16 has 8 bits: sums in another order move a logit of size 8 by up to 2 ** -4 in each layer.
    assert_close(*found, 0.25, changed=2)


@pytest.mark.minutes
def test_four_bits_give_the_answers_of_stock(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, requests: list
) -> None:
    model = model_of("NF4", tmp_path)
    found = [
        lm.loglikelihood(requests, disable_tqdm=True)
        for lm in (PrefixLM(model, tokenizer=tokenizer, batch_tokens=512), stock(model, tokenizer))
    ]
    assert_close(*found, 1e-4)  # computed in float32 on the same rounded weights


@pytest.mark.minutes
def test_lm_eval_knows_it_by_name(tmp_path: Path, requests: list, expected: list) -> None:
    ours = get_model("hf-prefix")(str(write_model(tmp_path)), device="cpu", dtype="float32", batch_tokens=512)
    assert_close(ours.loglikelihood(requests, disable_tqdm=True), expected, 1e-5)


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, requests: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(memory: ResumeCache | None, passes: int | None = None) -> tuple[list, int]:
        original, done = PassRunner.run, [0]

        def counted(*args: object) -> torch.Tensor:
            if done[0] == passes:
                raise KeyboardInterrupt
            done[0] += 1
            return original(*args)

        lm = PrefixLM(tiny_model(), tokenizer=tokenizer, batch_tokens=200, memory=memory)
        with monkeypatch.context() as patch:
            patch.setattr(PassRunner, "run", counted)
            return lm.loglikelihood(requests, disable_tqdm=True), done[0]

    whole, passes = run(None)
    for stop in (1, passes // 2, passes - 1):
        memory = ResumeCache(tmp_path / f"{stop}.sqlite")
        with pytest.raises(KeyboardInterrupt):
            run(memory, stop)
        memory.close()
        memory = ResumeCache(tmp_path / f"{stop}.sqlite")
        again, rest = run(memory)
        assert again == whole  # bit for bit
        assert rest <= passes - stop + 6  # what is left, and the leads that it builds upon
        assert run(memory) == (whole, 0)
        memory.forget()
    assert not list(tmp_path.iterdir())


def recorded(lm: HFLM) -> list[tuple[float, bool]]:
    """A list that fills with what the model answers to lm-eval."""
    answers: list[tuple[float, bool]] = []
    original = lm.loglikelihood

    def loglikelihood(requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        found = original(requests, disable_tqdm=True)
        answers.extend(found)
        return found

    lm.loglikelihood = loglikelihood
    return answers


def answers_of(lm: HFLM, subjects: dict[str, list[Subject]]) -> tuple[dict[str, dict], numpy.ndarray, list[str]]:
    """Scores, log-probabilities (Q, 4) and predictions of lm-eval's own evaluation of the subjects."""
    lm.cut = {}
    answers = recorded(lm)
    scores, table = score_benchmarks(lm, subjects, load_params(ROOT / "params.yaml").eval)
    values = numpy.array([value for value, _ in answers]).reshape(-1, 4)
    assert len(values) == len(table) >= 3000
    return scores, values, table["prediction"].to_pylist()


@pytest.fixture(scope="module")
def real_subjects(real_data: Path) -> dict[str, list[Subject]]:
    """Eighteen questions, or all that there are, of each of the 176 subjects."""
    subjects = {name: read_benchmark(real_data / "benchmarks" / name, name, 5, 18) for name in NAMES}
    assert sum(map(len, subjects.values())) == 176
    return subjects


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["float32", "NF4"])
def test_scores_are_stock_on_three_thousand_real_questions(
    real_subjects: dict[str, list[Subject]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str
) -> None:
    model = model_of(kind, tmp_path)
    ours, values, letters = answers_of(PrefixLM(model, tokenizer=tokenizer, batch_tokens=1024), real_subjects)
    lm = stock(model, tokenizer, max_length=4096, batch_size=1)  # its logits take 0.4 GB a prompt
    theirs, expected, stock_letters = answers_of(lm, real_subjects)
    gap = numpy.abs(values - expected)
    print(f"{kind}: {len(gap):,} questions, largest difference {gap.max():.1e}, mean {gap.mean():.1e}")
    assert gap.max() <= 1e-5  # NF4 too computes in float32, on equal rounded weights
    assert letters == stock_letters and len(set(letters)) > 1
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_bfloat16_is_as_near_to_float32_as_stock_on_three_thousand_real_questions(
    real_subjects: dict[str, list[Subject]], tokenizer: PreTrainedTokenizerFast
) -> None:
    # bfloat16 keeps 8 bits, and a rounded router sometimes sends a token to another expert, in stock as in ours.
    # So the two are held against the same weights in float32, from which neither may be farther than the other.
    model = model_of("bfloat16")
    exact = type(model)(model.config)
    exact.load_state_dict(model.state_dict())
    _, truth, _ = answers_of(PrefixLM(exact.eval(), tokenizer=tokenizer, batch_tokens=1024), real_subjects)
    _, ours, letters = answers_of(PrefixLM(model, tokenizer=tokenizer, batch_tokens=1024), real_subjects)
    lm = stock(model, tokenizer, max_length=4096, batch_size=1)
    _, theirs, stock_letters = answers_of(lm, real_subjects)
    pairs = {"ours, stock": (ours, theirs), "ours, float32": (ours, truth), "stock, float32": (theirs, truth)}
    mean, far = {}, {}
    for name, (one, other) in pairs.items():
        gap = numpy.abs(one - other)
        mean[name], far[name] = gap.mean(), numpy.quantile(gap, 0.99)
        print(f"{name}: mean {mean[name]:.1e}, 99 % below {far[name]:.1e}, largest {gap.max():.1e}")
    changed = sum(one != other for one, other in zip(letters, stock_letters, strict=True))
    print(f"{len(letters):,} questions, answers changed {changed}")
    assert mean["ours, stock"] <= 0.02 and far["ours, stock"] <= 0.1
    assert mean["ours, float32"] <= 1.1 * mean["stock, float32"]
    assert far["ours, float32"] <= 1.1 * far["stock, float32"]
    assert changed <= 0.01 * len(letters)


@pytest.mark.slow
def test_tokens_of_the_full_suite(real_data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = requests_of(real_data / "benchmarks", 10**6)
    ours = PrefixLM(tiny_model(), tokenizer=tokenizer)
    rows = list({tuple(context): None for context, _ in ours.encode_pairs([request.args for request in asked])})
    stock_tokens = sum(map(len, rows))
    tokens = sum(len(step.tokens) for step in plan_passes(rows, 8192))
    assert stock_tokens > 17_000_000
    assert tokens < 1.05 * 3_100_000  # "prefix once per subject"
