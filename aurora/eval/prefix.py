"""An lm-eval model that forwards each shared prefix once and reads logits at last positions only.

Import this module and lm-eval knows it as `hf-prefix`; all arguments of its `hf` model hold:
`lm_eval.simple_evaluate(model="hf-prefix", model_args={"pretrained": …, "batch_tokens": 8192}, tasks=…)`.
"""

from collections.abc import Iterator, Sequence

import numpy
import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import has_bos_prefix
from tqdm import tqdm
from transformers import DynamicCache, PreTrainedModel

from aurora.core.errors import ModelError
from aurora.eval.resume_cache import ResumeCache, computed, key_of
from aurora.eval.token_tree import Pass, plan_passes
from aurora.model.folder import has_plain_attention

Request = tuple[tuple[str, str] | None, list[int], list[int]]  # texts, tokens of context and of continuation
MASKED_ATTENTION = ("sdpa", "eager")  # attention that takes a mask of any shape


@register_model("hf-prefix")
class PrefixLM(HFLM):
    """lm-eval's `hf` model, faster where continuations are single tokens, as in multiple choice by letter.

    All other requests go to the parent: longer continuations, generation, models without a plain cache.
    Log-probabilities are taken in float32 whatever the type of the model.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        batch_tokens: int = 8192,
        memory: ResumeCache | None = None,
        **settings: object,
    ) -> None:
        super().__init__(pretrained, **{"softmax_dtype": "float32", **settings})
        self.batch_tokens = batch_tokens
        self.memory = memory
        self.tokens_forwarded = 0
        # Contexts that are longer than the model takes, and the tokens that each loses at its front.
        self.cut: dict[str, int] = {}

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As the parent; each context is tokenised once instead of eight times."""
        if self.backend != "causal" or any(not request.args[0] for request in requests):
            return super().loglikelihood(requests, disable_tqdm)
        pairs = [request.args for request in requests]
        encoded = self.encode_pairs(pairs)
        return self._loglikelihood_tokens(
            [(pair, *tokens) for pair, tokens in zip(pairs, encoded, strict=True)], disable_tqdm
        )

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each context and continuation, equal to the parent's `_encode_pair`.

        The tokens of a continuation depend on the end of its context alone. So they are found with whole texts
        once for each last line and continuation; last lines such as `Answer:` are few. Contexts with one line,
        or with spaces at their end, are left to the parent.
        """
        simple = {context: None for context, _ in pairs if "\n" in context and context == context.rstrip()}
        contexts = dict(zip(simple, self._encode_texts(list(simple)), strict=True))
        continuations: dict[tuple[str, str], list[int]] = {}
        encoded = []
        for context, continuation in pairs:
            if context not in contexts:
                encoded.append(self._encode_pair(context, continuation))
                continue
            key = (context[context.rindex("\n") :], continuation)
            if key not in continuations:
                continuations[key] = self._encode_pair(context, continuation)[1]
            encoded.append((contexts[context], continuations[key]))
        return encoded

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        bos = self.tokenizer.decode(self.prefix_token_id)
        special = {} if self.add_bos_token is None else {"add_special_tokens": self.add_bos_token}
        plain = [text for text in texts if not has_bos_prefix(text, bos)]
        found: dict[str, list[int]] = {}
        for start in range(0, len(plain), 512):  # bounds the memory of the tokeniser's offsets
            part = plain[start : start + 512]
            ids = self.tokenizer(part, return_attention_mask=False, **special)["input_ids"]
            found.update(zip(part, ids, strict=True))
        return [found[text] if text in found else self.tok_encode(text) for text in texts]

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        known = self.model.get_input_embeddings().num_embeddings
        for texts, context, continuation in requests:
            if (largest := max(*context, *continuation, 0)) >= known:
                raise ModelError(
                    f"{self.tokenizer.name_or_path}: its tokeniser gives token {largest}, but its weights know {known}:"
                    " they are not of one model; fetch them from one"
                )
            lost = len(context) + len(continuation) - 1 - self.max_length  # the last token is never an input
            if lost > 0 and texts is not None:
                self.cut[texts[0]] = max(lost, self.cut.get(texts[0], 0))
        single = [index for index, (_, _, continuation) in enumerate(requests) if len(continuation) == 1]
        if len(single) < len(requests) or not self._takes_masks():
            # Rolling windows and longer continuations come whole; a mixture is not worth a second path.
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        rows: dict[tuple[int, ...], int] = {}  # each distinct context once
        wanted: list[dict[int, None]] = []  # for each row the tokens that are asked for
        places = []
        for _, context, continuation in requests:
            row = rows.setdefault(tuple(context[-self.max_length :]), len(rows))
            if row == len(wanted):
                wanted.append({})
            wanted[row][continuation[0]] = None
            places.append((row, continuation[0]))
        tokens = [numpy.fromiter(row, dtype=numpy.int32, count=len(row)) for row in wanted]
        answers = self.score(list(rows), tokens, disable_tqdm)
        results = []
        for (texts, _, _), (row, token) in zip(requests, places, strict=True):
            answer = answers[row][token]
            results.append(answer)
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return results

    def _takes_masks(self) -> bool:
        # A quantised, adapted or otherwise wrapped model is fine, as long as its cache and attention are plain.
        config = self.config
        return (
            self.backend == "causal"
            and getattr(config, "_attn_implementation", None) in MASKED_ATTENTION
            and has_plain_attention(config)
        )

    def score(
        self, rows: list[Sequence[int]], wanted: list[numpy.ndarray], disable_tqdm: bool = False
    ) -> list[dict[int, tuple[float, bool]]]:
        """For each distinct row of tokens and each wanted next token: log-probability, and whether it is the argmax."""
        passes = plan_passes(rows, self.batch_tokens)
        keys = self._keys(passes, wanted) if self.memory is not None else []

        def scores(numbers: list[int]) -> Iterator[tuple[int, bytes]]:
            runner, asked = PassRunner(self.model, self.mixed_precision_dtype), set(numbers)
            needed = self._needed(passes, asked)
            total = sum(len(passes[number].tokens) for number in needed)
            with tqdm(total=total, disable=disable_tqdm, unit="token", desc="questions") as bar:
                for number in needed:
                    step = passes[number]
                    logits = runner.run(step)
                    self.tokens_forwarded += len(step.tokens)
                    if number in asked:
                        yield number, self._read(logits, step, wanted).tobytes()
                    bar.update(len(step.tokens))

        answers: list[dict[int, tuple[float, bool]]] = [{} for _ in rows]
        values = computed(self.memory, keys, [len(step.tokens) for step in passes], scores)
        for step, value in zip(passes, values, strict=True):
            pairs = iter(numpy.frombuffer(value, dtype=numpy.float64).reshape(-1, 2).tolist())
            for row in step.rows:
                for token in wanted[row].tolist():
                    logprob, greedy = next(pairs)
                    answers[row][token] = (logprob, bool(greedy))
        return answers

    def _read(self, logits: torch.Tensor, step: Pass, wanted: list[numpy.ndarray]) -> numpy.ndarray:
        # logits: (R, vocabulary). Returns (W, 2) float64: log-probability and greediness of each wanted token.
        found = []
        values = torch.log_softmax(logits, dim=-1, dtype=self.softmax_dtype)
        best = values.argmax(dim=-1)
        for place, row in enumerate(step.rows):
            tokens = torch.from_numpy(wanted[row].astype(numpy.int64)).to(values.device)
            pair = torch.stack([values[place, tokens].double(), (tokens == best[place]).double()], dim=1)
            found.append(pair)
        return torch.cat(found).cpu().numpy() if found else numpy.empty((0, 2))

    @staticmethod
    def _keys(passes: list[Pass], wanted: list[numpy.ndarray]) -> list[bytes]:
        # The key of a pass holds its parent's, and so every token that it builds upon, and the cut into passes.
        keys: list[bytes] = []
        for step in passes:
            above = keys[step.parent] if step.parent is not None else b""
            asked = [wanted[row].tolist() for row in step.rows]
            keys.append(key_of(above, step.depth, step.cache_length, step.tokens, step.ends, step.places, asked))
        return keys

    @staticmethod
    def _needed(passes: list[Pass], asked: set[int]) -> list[int]:
        # A pass that is not asked for runs too, whole, if one of these builds upon its cache: so the bytes stay the same.
        needed = set(asked)
        for index in reversed(range(len(passes))):
            parent = passes[index].parent
            if index in needed and parent is not None:
                needed.add(parent)
        return sorted(needed)


class PassRunner:
    """Runs passes in order on one cache of batch size 1, which grows by prefixes and is cut back to them."""

    def __init__(self, model: PreTrainedModel, autocast: torch.dtype | None = None) -> None:
        self.model = model
        self.device = model.device
        self.autocast = autocast
        self.additive = model.config._attn_implementation == "eager"
        self.cache = DynamicCache()

    @torch.inference_mode()
    def run(self, step: Pass, places: numpy.ndarray | None = None) -> torch.Tensor:
        """Logits (R, vocabulary) at the ends of the pass's rows, or at `places`."""
        self._crop(step.depth)
        if places is None:
            places = step.places
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            logits = self.model(
                input_ids=self._tensor(step.tokens)[None],
                position_ids=self._tensor(step.positions)[None],
                attention_mask=None if step.is_chain else self._mask(step),
                past_key_values=self.cache,
                use_cache=True,
                # A pass that is only a prefix has no logits to give; one position keeps the call simple.
                logits_to_keep=self._tensor(places if len(places) else numpy.zeros(1, dtype=numpy.int32)),
            ).logits[0]
        self._crop(step.cache_length)
        return logits[: len(places)]

    def _tensor(self, array: numpy.ndarray) -> torch.Tensor:
        return torch.from_numpy(array.astype(numpy.int64)).to(self.device)

    def _mask(self, step: Pass) -> torch.Tensor:
        # (1, 1, T, depth + T); True where the query of a row sees the key of a column.
        index = torch.arange(len(step.tokens), device=self.device)
        ends = self._tensor(step.ends)
        own = (index[None, :] <= index[:, None]) & (index[:, None] < ends[None, :])
        mask = torch.nn.functional.pad(own, (step.depth, 0), value=True)[None, None]
        if not self.additive:
            return mask
        lowest = torch.finfo(self.model.dtype).min
        return torch.zeros(mask.shape, dtype=self.model.dtype, device=self.device).masked_fill(~mask, lowest)

    def _crop(self, length: int) -> None:
        surplus = self.cache.get_seq_length() - length
        if length == 0:
            self.cache = DynamicCache()
        elif surplus > 0:
            self.cache.crop(-surplus)
