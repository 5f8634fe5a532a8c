"""Schedules: what they allow, what they refuse, and that budgets are met."""

from __future__ import annotations

import pytest
import torch
from conftest import PATCHES, Prompt, make_inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

import illava_lab as il
from illava_lab.models.families import describe


@given(keep=st.floats(0.02, 1.0), name=st.sampled_from(["illava", "fastv", "tome", "random"]))
@settings(max_examples=40, deadline=None)
def test_a_budget_is_met_by_what_the_last_llm_layer_sees(model, keep, name):
    if name == "tome":
        keep = max(keep, 0.15)  # four layers can at most halve the tokens four times
    schedule = il.Schedule.for_budget(name, model, keep=keep)
    with il.attach(model, name, schedule) as trace, torch.no_grad():
        cache = model(**make_inputs([Prompt()])).past_key_values
    text = make_inputs([Prompt()])["input_ids"].shape[1] - PATCHES
    assert cache.layers[-1].keys.shape[2] - text == max(1, round(PATCHES * keep))
    counts = schedule.tokens(describe(model))
    assert [step.after for step in trace.steps if step.stage == "llm"] == [counts["llm"][k] for k in schedule.llm]
    assert counts["llm"][-1] == max(1, round(PATCHES * keep))


def onevision_sized() -> LlavaForConditionalGeneration:
    """Depths and grid of LLaVA-OneVision-7B with tiny widths: 26 encoder layers, 27 x 27 patches, 28 decoder layers."""
    vision = SiglipVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=26, num_attention_heads=2, image_size=54, patch_size=2
    )
    text = Qwen2Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=3,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    ).eval()


def test_presets_are_the_papers_numbers_on_the_papers_model_and_scale_elsewhere(model):
    published = il.Schedule.preset("illava-image", onevision_sized())
    assert published.encoder == {5: 637, 6: 545, 7: 453, 8: 361}
    assert published.llm == {8: 0.70}
    scaled = il.Schedule.preset("illava-image", model)
    counts = scaled.tokens(describe(model))
    assert counts["encoder"][-1] == pytest.approx(PATCHES * 361 / 729, abs=1.5)
    assert counts["llm"][-1] == pytest.approx(PATCHES * 361 / 729 * 0.7, abs=1.5)
    with pytest.raises(il.LabError, match="unknown preset 'x'. Known: illava-image"):
        il.Schedule.preset("x", model)


@pytest.mark.parametrize("keep", [0, 0.0, -1, 1.5, float("nan"), True, "half"])
def test_keep_outside_the_allowed_is_refused(model, keep):
    with pytest.raises(il.LabError, match=r"keep must be a fraction in \(0, 1\]"):
        il.Schedule.for_budget("illava", model, keep=keep)
    if keep is not True:
        with pytest.raises(
            il.LabError, match=r"schedule encoder layer 3: keep must be a fraction in \(0, 1\] or a count"
        ):
            il.Schedule(encoder={3: keep})


def test_layers_are_whole_numbers():
    with pytest.raises(il.LabError, match="layers are whole numbers, got '3'"):
        il.Schedule(llm={"3": 0.5})


def test_a_budget_for_one_stage_of_two(model):
    assert not il.Schedule.for_budget("illava", model, keep=0.5, stages=("llm",)).encoder
    with pytest.raises(il.LabError, match="'fastv' serves"):
        il.Schedule.for_budget("fastv", model, keep=0.5, stages=("encoder",))
