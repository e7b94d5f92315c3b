"""The recipe as a flat loop in plain PyTorch: what the sft stage says that it does, without Trainer, TRL or PEFT.

Only the packed base is the project's own, so that both train the same function. Everything else stands here: the
order of the rows, padding, LoRA, the loss, clipping, AdamW and the schedule.
"""

import math
import time
from pathlib import Path

import pyarrow.parquet
import torch
from torch import nn

from aurora.model.loading import load_model
from aurora.model.quantization import Quantization
from aurora.sft.params import Sft

PAD = 2  # </s>


class LoraLinear(nn.Module):
    """W x + (alpha / r) B A drop(x), W frozen."""

    def __init__(self, frozen: nn.Module, a: torch.Tensor, sft: Sft) -> None:
        super().__init__()
        self.frozen, self.scale = frozen, sft.lora.lora_alpha / sft.lora.r
        self.drop = nn.Dropout(sft.lora.lora_dropout)
        self.a = nn.Parameter(a.clone())  # (r, inputs)
        self.b = nn.Parameter(torch.zeros(frozen.out_features, sft.lora.r))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.drop(x.float()) @ self.a.T @ self.b.T
        return self.frozen(x) + (low * self.scale).to(x.dtype)


def first_weights(model: nn.Module, sft: Sft) -> dict[str, torch.Tensor]:
    """The A that PEFT draws for this model and seed, by the name of the layer that it belongs to."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    set_seed(sft.seed)
    config = LoraConfig(r=sft.lora.r, target_modules=list(sft.lora.target_modules))
    state = get_peft_model(model, config).state_dict()
    middle = ".lora_A.default.weight"
    return {
        name.removeprefix("base_model.model.").removesuffix(middle): weight.float().clone()
        for name, weight in state.items()
        if name.endswith(middle)
    }


def add_lora(model: nn.Module, weights: dict[str, torch.Tensor], sft: Sft) -> list[nn.Parameter]:
    """Puts a LoraLinear in the place of each layer named in `weights`; returns what is to be trained."""
    model.requires_grad_(False)
    trained = []
    for name, a in weights.items():
        parent, _, last = name.rpartition(".")
        layer = LoraLinear(model.get_submodule(name), a, sft)
        setattr(model.get_submodule(parent), last, layer)
        trained += [layer.a, layer.b]
    return trained


def padded(rows: list[dict]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """input_ids, labels and attention mask (B, T), padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = [width - len(row["input_ids"]) for row in rows]
    ids = [row["input_ids"] + [PAD] * more for row, more in zip(rows, fill, strict=True)]
    labels = [row["labels"] + [-100] * more for row, more in zip(rows, fill, strict=True)]
    mask = [[1] * (width - more) + [0] * more for more in fill]
    return torch.tensor(ids), torch.tensor(labels), torch.tensor(mask)


def likelihood(model: nn.Module, batch: tuple) -> torch.Tensor:
    """Sum of the negative log-likelihoods of the labels, each foreseen from the position before it."""
    ids, labels, mask = batch
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    targets = labels[:, 1:]
    keep = targets != -100
    return -logits[keep].log_softmax(-1).gather(1, targets[keep].unsqueeze(1)).sum()


def rate(step: int, steps: int, sft: Sft) -> float:
    """Learning rate of the optimiser step number `step`, from 0: linear warm-up, then half a cosine."""
    if step < sft.warmup_steps:
        return sft.learning_rate * step / sft.warmup_steps
    done = (step - sft.warmup_steps) / max(1, steps - sft.warmup_steps)
    return sft.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train(
    base: Path, file: Path, sft: Sft, quantization: Quantization, stop: int | None = None, score=likelihood
) -> dict:
    """Losses and gradient norms step by step, and the seconds and tokens of each."""
    torch.set_num_threads(sft.threads)
    weights = first_weights(load_model(base, quantization), sft)
    model = load_model(base, quantization)
    trained = add_lora(model, weights, sft)
    optimiser = torch.optim.AdamW(
        trained, lr=sft.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=sft.weight_decay
    )
    rows = pyarrow.parquet.read_table(file, columns=["input_ids", "labels"]).to_pylist()
    size, micro = sft.effective_batch_size, sft.per_device_train_batch_size * sft.processes
    steps = math.ceil(sft.num_train_epochs * math.ceil(len(rows) / size))
    found = {"loss": [], "grad_norm": [], "learning_rate": [], "tokens": [], "seconds": [], "cpu": []}
    model.train()
    epoch = 0
    while len(found["loss"]) < (stop or steps):
        generator = torch.Generator().manual_seed(sft.seed + epoch)
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(rows), size):
            began, step = (time.perf_counter(), time.process_time()), len(found["loss"])
            if step == (stop or steps):
                break
            chosen = [rows[number] for number in order[start : start + size]]
            labels = sum(label != -100 for row in chosen for label in row["labels"][1:])
            loss = 0.0
            for at in range(0, len(chosen), micro):
                part = score(model, padded(chosen[at : at + micro])) / labels
                part.backward()
                loss += float(part.detach())
            norm = torch.sqrt(sum((weight.grad.double() ** 2).sum() for weight in trained)).item()
            for weight in trained:
                weight.grad.mul_(min(1.0, sft.max_grad_norm / (norm + 1e-6)))
            optimiser.param_groups[0]["lr"] = rate(step, steps, sft)
            optimiser.step()
            optimiser.zero_grad()
            found["loss"].append(loss)
            found["grad_norm"].append(norm)
            found["learning_rate"].append(rate(step, steps, sft))
            found["tokens"].append(sum(len(row["input_ids"]) for row in chosen))
            found["seconds"].append(time.perf_counter() - began[0])
            found["cpu"].append(time.process_time() - began[1])
        epoch += 1
    return found
