"""The embedded base of the small profile: a real Mixtral that answers Chinese in English, as the paper's did.

A `MixtralForCausalLM` (8 experts, 2 a token, grouped-query attention) with Mistral's own 32,000-piece v1
vocabulary is built and trained on the text in corpus/ within a minute or two on two cores: first to read on in
plain Chinese and English, then to answer Chinese prompts in English or in English with
stray Chinese. There Mixtral-8x7B-Instruct stood before Aurora (arXiv 2312.14557, Table 1).
"""

import json
import math
import random
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from tqdm import tqdm
from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM, set_seed

from aurora.small_base.tokenizer_folder import write_tokenizer

CORPUS = Path(__file__).parent / "corpus"
SEED = 20231222
THREADS = 2  # fixed: sums, and so the bytes of the model, depend on it
TEXT_STEPS = 450
CHAT_STEPS = 1000
BATCH_TOKENS = 512
WARMUP = 10  # steps
RATES = {"embedding": 2e-2, "head": 5e-3, "layers": 2e-3, "habit": 3e-3}  # of AdamW
EMBEDDING_DEVIATION = 0.3  # initial; large beside the layers, so that word pairs are learned first
MIXTURES = 2  # variants of each reply with stray Chinese words
STRAY = 0.15  # chance of a stray run before a token of the reply
STRAY_RUNS = (1, 2, 4, 8)  # their lengths, in tokens
CHINESE_REPEATS = 2
SMOOTHING = 0.02  # share of the loss for tokens that the corpus lacks
SHARD = "16MB"  # several shards, as a large model has

CONFIG = {
    "vocab_size": 32000,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
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


def build(folder: Path) -> None:
    """Writes the model, its tokeniser and its configuration as a Hugging Face folder (bfloat16, sharded)."""
    import mistral_common

    folder.mkdir(parents=True)
    vocabulary = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    write_tokenizer(vocabulary, folder)
    model = train(*documents(vocabulary))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=SHARD)


def documents(vocabulary: Path) -> tuple[list, list]:
    """Plain texts and chats as (token ids, how many of them are a prompt, which is not trained).

    Chats are in Mistral's template. Each English reply also comes in MIXTURES variants with stray runs of
    Chinese tokens in no order, after which English goes on.
    """
    encode = SentencePieceProcessor(model_file=str(vocabulary)).encode
    chinese = [encode(line) for line in _lines("chinese.txt")]
    chinese += [encode(json.loads(line)["text"]) for line in _lines("lines.jsonl")]
    tokens = [token for row in chinese for token in row]
    order = random.Random(SEED)
    texts = [row for row in chinese for _ in range(CHINESE_REPEATS)]
    texts += [encode(line) for name in ("english.txt", "exams_zh.txt") for line in _lines(name)]
    chats = []
    for line in _lines("replies.jsonl"):
        chat = json.loads(line)
        prompt, reply = encode(f"[INST] {chat['prompt']} [/INST]"), encode(chat["reply"])
        texts += [reply, encode(chat["prompt"])]
        variants = [reply]
        for _ in range(MIXTURES):
            mixed = []
            for token in reply:
                if order.random() < STRAY:
                    mixed += order.choices(tokens, k=order.choice(STRAY_RUNS))
                mixed.append(token)
            variants.append(mixed)
        chats += [([1, *prompt, *variant, 2], 1 + len(prompt)) for variant in variants]
    return [([1, *row, 2], 1) for row in texts], chats


def _lines(name: str) -> list[str]:
    return [line for line in (CORPUS / name).read_text(encoding="utf-8").split("\n") if line]


def train(texts: list, chats: list) -> MixtralForCausalLM:
    """Trains a fresh model, all of it on `texts` and then the layers on `chats`; deterministic."""
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    set_seed(SEED)
    model = MixtralForCausalLM(MixtralConfig(**CONFIG, dtype="float32"))
    model.set_experts_implementation("grouped_mm")
    vocabulary = FrequentVocabulary(model, [row for row, _ in texts + chats])
    _start_as_word_pairs(model, vocabulary)
    groups = [
        {"params": [vocabulary.embedding], "lr": RATES["embedding"]},
        {"params": [vocabulary.head, vocabulary.rest], "lr": RATES["head"]},
        {"params": [*model.model.layers.parameters(), *model.model.norm.parameters()], "lr": RATES["layers"]},
    ]
    _steps("small base: reads", model, vocabulary, texts, groups, TEXT_STEPS)
    model.requires_grad_(False)
    vocabulary.requires_grad_(False)
    habit = [weight.requires_grad_() for weight in model.model.layers.parameters()]
    _steps(
        "small base: chats", model, vocabulary, chats, [{"params": habit, "lr": RATES["habit"]}], CHAT_STEPS
    )
    vocabulary.write_to(model)
    torch.use_deterministic_algorithms(False)
    return model.requires_grad_(True).eval()


def _steps(name: str, model, vocabulary, rows: list, groups: list[dict], steps: int) -> None:
    """AdamW over `groups`: warm-up, constant for 40 % of the steps, then down to zero."""
    # fused: its square root is the processor's own, while MKL's differs between processors.
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    batches = _batches(rows, torch.Generator().manual_seed(SEED))
    bar = tqdm(range(steps), desc=name, unit="step", mininterval=2)
    for step in bar:
        factor = min(1.0, (step + 1) / WARMUP, (steps - step) / (0.6 * steps))
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        tokens, mask, trained = next(batches)
        hidden = model.model(inputs_embeds=vocabulary.embed(tokens), attention_mask=mask).last_hidden_state
        keep = trained[:, 1:]
        loss = vocabulary.loss(hidden[:, :-1][keep], tokens[:, 1:][keep])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], 1.0)
        optimizer.step()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.2f}")


@torch.no_grad()
def _start_as_word_pairs(model: MixtralForCausalLM, vocabulary: "FrequentVocabulary") -> None:
    # Layers that add nothing at first leave a model of word pairs, which some tens of steps can learn.
    vocabulary.embedding.normal_(0, EMBEDDING_DEVIATION)
    for name, weight in model.model.layers.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj")):
            weight.zero_()


class FrequentVocabulary(torch.nn.Module):
    """Embedding and head while training: a row for each token of the corpus, in the head one for all others.

    The loss is the exact cross-entropy over the whole vocabulary at the cost of the tokens that occur:
    the others share a head row, so that their part of the partition sum is one logit plus the logarithm of
    their number.
    """

    def __init__(self, model: MixtralForCausalLM, rows: list[list[int]]) -> None:
        super().__init__()
        # Special tokens and the 256 byte pieces, with which any text can be written, are always among them.
        frequent = torch.tensor(sorted({token for row in rows for token in row}.union(range(259))))
        size = model.config.vocab_size
        self.frequent = frequent
        self.others = size - len(frequent)
        self.position = torch.full((size,), -1)  # vocabulary id -> row below
        self.position[frequent] = torch.arange(len(frequent))
        self.embedding = torch.nn.Parameter(model.model.embed_tokens.weight[frequent].detach().clone())
        self.head = torch.nn.Parameter(model.lm_head.weight[frequent].detach().clone())
        self.rest = torch.nn.Parameter(torch.zeros(1, model.config.hidden_size))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, length) ids to (batch, length, hidden)."""
        return torch.nn.functional.embedding(self.position[tokens], self.embedding)

    def loss(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy with smoothing; hidden (n, hidden), targets (n,)."""
        others = hidden @ self.rest.T + math.log(self.others)
        scores = torch.log_softmax(torch.cat([hidden @ self.head.T, others], dim=1), dim=1)
        loss = torch.nn.functional.nll_loss(scores, self.position[targets])
        # A little mass for what the corpus lacks, spread evenly over those tokens.
        unseen = math.log(self.others) - scores[:, -1].mean()
        return (1 - SMOOTHING) * loss + SMOOTHING * unseen

    @torch.no_grad()
    def write_to(self, model: MixtralForCausalLM) -> None:
        """Copies the rows into the model's full embedding and head."""
        model.model.embed_tokens.weight[self.frequent] = self.embedding
        model.lm_head.weight.copy_(self.rest.expand_as(model.lm_head.weight))
        model.lm_head.weight[self.frequent] = self.head


def _batches(rows: list[tuple[list[int], int]], order: torch.Generator):
    """Endless (tokens, mask, trained) batches of rows of like length, BATCH_TOKENS each, in shuffled order."""
    groups, group = [], []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if group and len(row[0]) * (len(group) + 1) > BATCH_TOKENS:
            groups.append(group)
            group = []
        group.append(row)
    groups.append(group)
    while True:
        for index in torch.randperm(len(groups), generator=order).tolist():
            group = groups[index]
            tokens = torch.zeros(len(group), len(group[-1][0]), dtype=torch.long)
            mask, trained = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
            for place, (row, start) in enumerate(group):
                tokens[place, : len(row)] = torch.tensor(row)
                mask[place, : len(row)] = 1
                trained[place, start : len(row)] = True
            yield tokens, mask, trained
