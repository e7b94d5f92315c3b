"""A model run in the memory of one layer: every prompt goes through a layer before the next one is read.

For the 16-bit model, which fits no single card: its 94 GB are read once, whatever the number of prompts.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from aurora.merge.shards import read_tensor
from aurora.model.folder import TensorInfo, meta_model, read_config, read_shards

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

LAYERS = "model.layers."  # names of a decoder's layers in its checkpoint
FAMILIES = ("mixtral",)  # whose layers take embeddings as they are, and are all alike


def is_streamable(folder: Path) -> bool:
    """Whether layers can be taken out of a model by the names of this module, and run each as a model of its own."""
    return read_config(folder).get("model_type") in FAMILIES


def streamed_logits(folder: Path, samples: list[tuple[list[int], list[int]]], device: str) -> list["torch.Tensor"]:
    """Logits (positions, vocabulary) of each sample (tokens, positions), computed in bfloat16; float32, on the CPU.

    Holds one layer, embeddings and head, and the hidden states of all samples; gives the bits of the whole model.
    """
    import torch
    from tqdm import tqdm

    skeleton, shards = meta_model(folder), read_shards(folder)
    places = {name: (folder / file, place) for file, held in shards.items() for name, place in held.items()}
    outer = _read({name: place for name, place in places.items() if not name.startswith(LAYERS)})
    last = skeleton.config.num_hidden_layers - 1
    hidden: list[torch.Tensor] = []  # (1, tokens, hidden) each
    with torch.inference_mode():
        for layer in tqdm(range(last + 1), desc="drift: merged in 16 bits", unit="layer"):
            prefix = f"{LAYERS}{layer}."
            state = _read({name: place for name, place in places.items() if name.startswith(prefix)})
            state = {name.replace(prefix, f"{LAYERS}0.", 1): tensor for name, tensor in state.items()}
            model = _one_layer(skeleton, outer | state, device)
            del state
            if layer == 0:
                embed = model.get_input_embeddings()
                hidden = [embed(torch.tensor([tokens], device=device)) for tokens, _ in samples]
            if layer == last:
                return [_logits(model, *pair) for pair in zip(hidden, samples, strict=True)]
            model.model.norm = torch.nn.Identity()
            for number, state in enumerate(hidden):
                hidden[number] = model.model(inputs_embeds=state, use_cache=False).last_hidden_state
            del model
    return []


def _logits(model: "PreTrainedModel", hidden: "torch.Tensor", sample: tuple[list[int], list[int]]) -> "torch.Tensor":
    import torch

    keep = torch.tensor(sample[1], device=hidden.device)
    return model(inputs_embeds=hidden, logits_to_keep=keep, use_cache=False).logits[0].float().cpu()


def _read(places: dict[str, tuple[Path, TensorInfo]]) -> dict[str, "torch.Tensor"]:
    tensors = {}
    for name, (path, place) in places.items():
        with path.open("rb", 0) as file:
            tensors[name] = read_tensor(file, place)
    return tensors


def _one_layer(skeleton: "PreTrainedModel", state: dict, device: str) -> "PreTrainedModel":
    """The model as if the layer in `state` were its only one; transformers' own loader fuses the experts."""
    import torch

    config = copy.deepcopy(skeleton.config)
    config.num_hidden_layers = 1
    model = type(skeleton).from_pretrained(None, config=config, state_dict=state, dtype=torch.bfloat16)
    model.set_experts_implementation("grouped_mm")
    return model.to(device).eval()
