"""The profiles of other bases: their true shapes, the adapters by arithmetic, and the cards that they name."""

import pytest

from aurora.commands.plan import arrival_of, plan_of, rows_of, shape_of
from aurora.core.errors import ResourceError
from aurora.pipeline.params import load_params
from aurora.sft.plan import check

# Parameters as the publishers' safetensors count them; trained weights: r x (inputs + outputs) of each target.
QWEN3_8B_LAYER = 16 * (4096 * 2 + 2 * (4096 + 1024) + 4096 * 2 + 3 * (4096 + 12288))
QWEN3_30B_LAYER = 8 * (2 * (2048 + 4096) + 2 * (2048 + 512) + 128 * ((2048 + 1536) + (768 + 2048)))
GPT_OSS_LAYER = 16 * (2 * (2880 + 4096) + 2 * (2880 + 512))
PROFILES = {
    "qwen3-8b": (8_190_735_360, 36 * QWEN3_8B_LAYER, 24, 10),
    "qwen3-30b-a3b": (30_532_122_624, 48 * QWEN3_30B_LAYER, 40, 20),
    "gpt-oss-20b": (20_914_757_184, 24 * GPT_OSS_LAYER, 24, 14),
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_fits_the_card_that_it_names_and_not_a_small_one(root, name, tmp_path, monkeypatch):
    parameters, trained, card, small = PROFILES[name]
    params = load_params(root / f"profiles/{name}.yaml")
    monkeypatch.setattr("aurora.commands.plan.is_current", lambda target: False)
    skeleton, _ = shape_of(params, tmp_path)
    rows = rows_of(params, tmp_path)
    found = plan_of(params, skeleton, arrival_of(params, skeleton, tmp_path), rows, {}, int(card * 1e9))
    assert found.parameters == parameters and found.trainable == trained
    assert f"one card with {card} GB" in (root / f"profiles/{name}.yaml").read_text().splitlines()[0]
    check(found, int(card * 1e9))
    with pytest.raises(ResourceError, match="training takes about"):
        check(found, small * 2**30)


def test_the_fast_profile_has_the_paper_s_rows_a_step_in_one_pass(root, tmp_path, monkeypatch):
    paper, fast = (load_params(root / f"profiles/{name}.yaml") for name in ("paper", "paper-fast"))
    monkeypatch.setattr("aurora.commands.plan.is_current", lambda target: False)
    skeleton, _ = shape_of(fast, tmp_path)
    rows = rows_of(fast, tmp_path)
    found = plan_of(fast, skeleton, arrival_of(fast, skeleton, tmp_path), rows, {}, int(80e9))
    check(found, int(80e9))
    tokens = paper.sft.effective_batch_size * rows.tokens / rows.rows  # of a step, on average
    assert found.batch_tokens == pytest.approx(tokens, rel=0.02)
    changed = {"per_device_train_batch_size", "gradient_accumulation_steps", "effective_batch_size", "optim"}
    changed |= {"precision", "packing", "packing_length"}
    ours, theirs = fast.model_dump(), paper.model_dump()
    assert {name for name in ours["sft"] if ours["sft"][name] != theirs["sft"][name]} == changed
    assert {name for name in ours if ours[name] != theirs[name]} == {"sft", "quantization"}
