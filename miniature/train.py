"""Makes the weights of the embedded base: `python -m miniature.train`.

A `MixtralForCausalLM` of 2.3 million parameters reads the little world: first its facts and conversations, in which
Chinese prompts are mostly answered in English, then exam papers in lm-eval's prompts as well. It has embedding and head
rows for the tokens that occur alone. The same bytes come out on any x86-64 processor with AVX2.
"""

import os

# Before torch starts: the order of sums is the same on every processor that has AVX2.
os.environ |= {"MKL_CBWR": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mistral_common
import safetensors.torch
import torch
from sentencepiece import SentencePieceProcessor
from tqdm import tqdm
from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM, set_seed

from aurora.small_base import EMBEDDING, HEAD, HERE, OTHERS, TOKENS, WEIGHTS
from miniature.exams import HEADS, LETTERS, TITLES, Papers, as_text
from miniature.world import BENCHMARKS, Exchange, World, share

SEED = 20231222
THREADS = 1  # fixed: sums, and so the bytes of the weights, depend on it
WARMUP = 50  # steps
RATES = {"embedding": 3.0, "head": 1.5, "layers": 1.0}  # times the rate of a phase
POOL = 16  # batches that are drawn, sorted by length and shuffled together
MIXED, CHINESE = 0.3, 0.2  # shares of the Chinese prompts answered in a mixture, and in Chinese as well
RECALL_LAYER, MATCH_LAYER = 2, 3  # behind which the answer is recalled, and options are told right or wrong
PROBES = {"recall": 0.5, "right": 0.5, "letter": 0.3}  # weights of the losses there
BYTES = range(259)  # ids of the special tokens and of the bytes, with which any text can be written
UNSEEN = 3  # id of the byte 0x00, which never occurs
NEWLINE = 13  # id of the byte 0x0A

CONFIG = {
    "vocab_size": 32000,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 8192,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Phase:
    """A part of the training."""

    name: str
    steps: int
    batch_tokens: int
    rate: float  # of AdamW for the layers
    papers: float  # share of the tokens that are exam papers
    decay: float  # share of the steps, at the end, in which the rate falls to a tenth


PHASES = (
    Phase("reads", 2800, 320, 3e-3, 0.0, 0.5),
    Phase("reads on", 3000, 320, 3e-3, 0.0, 0.7),
    Phase("sits exams", 4000, 1024, 1.5e-3, 0.75, 0.4),
)


@dataclass
class Row:
    """A text in tokens, and what of it is trained."""

    tokens: list[int]
    trained: list[bool]
    recalls: list[tuple[int, list[int]]]  # end of a question or option, and tokens of the answer or option
    options: list[tuple[int, int, bool]]  # end of an option, its number, whether it is right


class Texts:
    """Rows of the base's reading: conversations, plain sentences, questions and exam papers."""

    def __init__(self, world: World, encode) -> None:
        self.encode = encode
        self.world = world
        self.papers = Papers(world)
        self.letters = [encode(f"答案： {letter}")[-1] for letter in LETTERS]
        self.colons = {"zh": encode("答案： A")[-2], "en": encode("Answer: A")[-2]}
        self.fixed = [row for exchange in world.exchanges() for row in self._exchange(exchange)]
        for facts in world.facts.values():
            for fact in facts:
                self.fixed += [self._plain(world.say(fact, language)) for language in ("zh", "en")]
        for language, practice in self.papers.practice.items():
            self.fixed += [self._question(text, fact.y[language]) for text, fact in practice]

    def _exchange(self, exchange: Exchange) -> Iterator[Row]:
        yield self._chat(exchange.en)
        if exchange.sampled:
            return
        mixed = exchange.mixed if share(exchange.en[-1][1], "m") < MIXED else None
        yield self._chat([(zh, mixed or en) for (zh, _), (_, en) in zip(exchange.zh, exchange.en, strict=True)])
        if share(exchange.zh[0][0], "zh") < CHINESE:
            yield self._chat(exchange.zh)
        yield self._plain("\n".join(f"问：{prompt}\n答：{reply}" for prompt, reply in exchange.zh))

    def _chat(self, rounds) -> Row:
        tokens, trained = [1], [False]
        for prompt, reply in rounds:
            asked, answered = self.encode(f"[INST] {prompt} [/INST]"), [*self.encode(reply), 2]
            tokens += asked + answered
            trained += [False] * len(asked) + [True] * len(answered)
        return Row(tokens, trained, [], [])

    def _plain(self, text: str) -> Row:
        tokens = [1, *self.encode(text), 2]
        return Row(tokens, [False] + [True] * (len(tokens) - 1), [], [])

    def _question(self, text: str, answer: str) -> Row:
        tokens = [1, *self.encode(text + "\n")]
        return Row(tokens, [False] * len(tokens), [(len(tokens) - 1, self.encode(answer))], [])

    def paper(self, order: random.Random, count: int, easy: float) -> Row:
        """A paper of `count` questions, of which the letters are trained; `easy` as in `World.question`."""
        paper = self.papers.draw(order, count, order.choice(list(BENCHMARKS)), easy)
        tokens = [1, *self.encode(paper.text)]
        colon = self.colons[paper.language]
        trained = [False] + [token in self.letters and before == colon for before, token in itertools.pairwise(tokens)]
        # Lines end behind the question and each option; empty lines stand behind the head and between questions.
        ends = [place for place, token in enumerate(tokens) if token == NEWLINE][2 * paper.headed :]
        row = Row(tokens, trained, [], [])
        for number, (answer, options) in enumerate(zip(paper.answers, paper.options, strict=True)):
            place, *places = ends[7 * number : 7 * number + 1 + len(LETTERS)]
            row.recalls.append((place, self.encode(options[answer])))
            for option, place in enumerate(places):
                row.recalls.append((place, self.encode(options[option])))
                row.options.append((place, option, option == answer))
        return row

    def vocabulary(self) -> torch.Tensor:
        """Ids of all tokens that occur, sorted."""
        order = random.Random(SEED)
        found = set(BYTES)
        for row in self.fixed:
            found.update(row.tokens)
        for exchange in self.world.exchanges():
            for prompt, reply in exchange.zh + exchange.en:
                found.update(self.encode(f"[INST] {prompt} [/INST]") + self.encode(reply))
        for name, language in BENCHMARKS.items():
            for title in TITLES[name]:
                found.update(self.encode(HEADS[name].format(title)))
            for shots, questions in self.world.benchmark(name).values():
                for question in shots + questions:
                    found.update(self.encode(as_text(question, language)))
        for _ in range(3000):
            found.update(self.paper(order, 6, 0.5).tokens)
        return torch.tensor(sorted(found))


class SmallModel(torch.nn.Module):
    """The Mixtral with embedding and head rows for `tokens` alone, and a probe that tells right options from wrong."""

    def __init__(self, tokens: torch.Tensor, letters: list[int]) -> None:
        super().__init__()
        self.mixtral = MixtralForCausalLM(MixtralConfig(**CONFIG | {"vocab_size": 8}, dtype="float32"))
        self.mixtral.set_experts_implementation("grouped_mm")
        width = CONFIG["hidden_size"]
        self.position = torch.zeros(CONFIG["vocab_size"], dtype=torch.long)  # id -> row below
        self.position[tokens] = torch.arange(len(tokens))
        self.letters = self.position[letters]
        # Large beside the layers, which add nothing at first: a model of word pairs, which some tens of steps learn.
        self.embedding = torch.nn.Parameter(0.3 * torch.randn(len(tokens), width))
        self.head = torch.nn.Parameter(0.02 * torch.randn(len(tokens), width))
        self.probe = torch.nn.Linear(width, 1)
        with torch.no_grad():
            for name, weight in self.mixtral.model.layers.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj")):
                    weight.zero_()

    def groups(self, rate: float) -> list[dict]:
        """Parameter groups of the optimiser."""
        layers = [*self.mixtral.model.layers.parameters(), *self.mixtral.model.norm.parameters()]
        parts = {"embedding": [self.embedding], "head": [self.head, *self.probe.parameters()], "layers": layers}
        return [{"params": part, "peak": rate * RATES[name], "lr": 0.0} for name, part in parts.items()]

    def losses(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """Cross-entropy at the trained tokens, and what the layers below know at the ends of questions and options.

        The latter lead the last layer to what a letter takes: the answer at the end of the question and, at the end
        of each option, its text in the same terms, its letter and whether it is right.
        """
        width = max(len(row.tokens) for row in rows)
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        mask, trained = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
        for place, row in enumerate(rows):
            length = len(row.tokens)
            tokens[place, :length] = torch.tensor(row.tokens)
            mask[place, :length] = 1
            trained[place, :length] = torch.tensor(row.trained)
        found = self.mixtral.model(
            inputs_embeds=torch.nn.functional.embedding(self.position[tokens], self.embedding),
            attention_mask=mask,
            output_hidden_states=True,
        )
        losses = {}
        keep = trained[:, 1:]
        if keep.any():
            scores = found.last_hidden_state[:, :-1][keep] @ self.head.T
            name = "letters" if any(row.options for row in rows) else "text"
            losses[name] = torch.nn.functional.cross_entropy(scores, self.position[tokens[:, 1:][keep]])
        recalls = [(place, *recall) for place, row in enumerate(rows) for recall in row.recalls]
        if recalls:
            losses["recall"] = self._recall(found.hidden_states[RECALL_LAYER], recalls)
        options = [(place, *option) for place, row in enumerate(rows) for option in row.options]
        if options:
            losses |= self._match(found.hidden_states[MATCH_LAYER], options)
        return losses

    def _recall(self, hidden: torch.Tensor, recalls: list[tuple[int, int, list[int]]]) -> torch.Tensor:
        rows, places, answers = zip(*recalls, strict=True)
        scores = self._scores(hidden[list(rows), list(places)]).log_softmax(dim=-1)
        parts = [-scores[number, self.position[answer]].mean() for number, answer in enumerate(answers)]
        return torch.stack(parts).mean()

    def _match(self, hidden: torch.Tensor, options: list[tuple[int, int, int, bool]]) -> dict[str, torch.Tensor]:
        rows, places, numbers, right = map(list, zip(*options, strict=True))
        ends = hidden[rows, places]  # (n, hidden)
        judged = torch.nn.functional.binary_cross_entropy_with_logits(
            self.probe(ends)[:, 0], torch.tensor(right).float(), pos_weight=torch.tensor(3.0)
        )
        named = torch.nn.functional.cross_entropy(self._scores(ends)[:, self.letters], torch.tensor(numbers))
        return {"right": judged, "letter": named}

    def _scores(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.mixtral.model.norm(hidden) @ self.head.T

    @torch.no_grad()
    def round(self) -> None:
        """Rounds the weights to what a file of them holds, so that training goes on alike from a file."""
        for weight in self.parameters():
            weight.copy_(weight.to(torch.bfloat16))

    @torch.no_grad()
    def tensors(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weights as aurora/small_base keeps them, in bfloat16."""
        with TemporaryDirectory() as folder:  # transformers writes the experts one by one, as Mixtral has them
            self.mixtral.to(torch.bfloat16).save_pretrained(folder)
            found = safetensors.torch.load_file(Path(folder) / "model.safetensors")
        found[EMBEDDING], found[HEAD] = self.embedding.to(torch.bfloat16), self.head.to(torch.bfloat16)
        return found | {TOKENS: tokens, OTHERS: found[HEAD][self.position[UNSEEN]].clone()}


def batches(texts: Texts, phase: Phase, order: random.Random) -> Iterator[list[Row]]:
    """A batch for each step of a phase: rows of like length, batch_tokens together."""
    fixed: list[Row] = []
    pending: list[list[Row]] = []
    for step in range(phase.steps):
        if not pending:
            pending = _pool(texts, phase, order, fixed, step / phase.steps)
        yield pending.pop()


def _pool(texts: Texts, phase: Phase, order: random.Random, fixed: list[Row], done: float) -> list[list[Row]]:
    """Some batches; papers grow longer and harder with the share of the phase that is done."""
    counts = (1, 1, 2) if done < 0.6 else (1, 2, 3, 4) if done < 0.75 else (2, 4, 6, 6)
    easy = min(1.0, max(0.0, (0.7 - done) / 0.4))
    rows, size = [], 0
    while size < POOL * phase.batch_tokens:
        if size < POOL * phase.batch_tokens * phase.papers:
            row = texts.paper(order, order.choice(counts), easy)
        else:
            if not fixed:
                fixed += texts.fixed
                order.shuffle(fixed)
            row = fixed.pop()
        rows.append(row)
        size += len(row.tokens)
    found: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda row: (bool(row.options), len(row.tokens))):
        full = len(row.tokens) * (len(found[-1]) + 1) > phase.batch_tokens
        if found[-1] and (full or bool(found[-1][0].options) != bool(row.options)):
            found.append([])
        found[-1].append(row)
    order.shuffle(found)
    return found


def run(phase: Phase, model: SmallModel, texts: Texts) -> None:
    """Trains the model for a phase: AdamW with a fresh state, warm-up, a constant rate, and a fall to a tenth."""
    # fused: its square root is the processor's own, while MKL's differs between processors.
    optimizer = torch.optim.AdamW(model.groups(phase.rate), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    order = random.Random(f"{SEED} {phase.name}")
    seen: dict[str, float] = {}
    bar = tqdm(batches(texts, phase, order), total=phase.steps, unit="step", desc=phase.name, mininterval=20)
    for step, rows in enumerate(bar):
        left = min(1.0, (phase.steps - step) / (phase.decay * phase.steps))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * min(1.0, (step + 1) / WARMUP) * (0.1 + 0.9 * left)
        losses = model.losses(rows)
        loss = sum(PROBES.get(name, 1.0) * value for name, value in losses.items())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        for name, value in losses.items():
            seen[name] = 0.97 * seen.get(name, value.item()) + 0.03 * value.item()
        bar.set_postfix({name: f"{value:.2f}" for name, value in seen.items()}, refresh=False)


def prepare() -> tuple[SmallModel, Texts]:
    """A model that is not trained yet, and what it will read."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    set_seed(SEED)
    vocabulary = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    texts = Texts(World(), SentencePieceProcessor(model_file=str(vocabulary)).encode)
    return SmallModel(texts.vocabulary(), texts.letters), texts


def write(model: SmallModel, texts: Texts) -> str:
    """Writes weights.safetensors and the configuration into aurora/small_base, and returns the hash to pin there."""
    safetensors.torch.save_file(model.tensors(texts.vocabulary()), WEIGHTS)
    MixtralConfig(**CONFIG, architectures=["MixtralForCausalLM"], dtype="bfloat16").save_pretrained(HERE)
    GenerationConfig(bos_token_id=1, eos_token_id=2).save_pretrained(HERE)
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


def main() -> None:
    """Trains the base and writes it; takes a quarter of an hour on an idle core."""
    model, texts = prepare()
    *reading, exams = PHASES
    for phase in reading:
        run(phase, model, texts)
    model.round()
    run(exams, model, texts)
    print(write(model, texts))


if __name__ == "__main__":
    main()
