"""What a prefill costs the host of a GPU: operations that are dispatched, counted on any machine."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import illava_lab as il
from illava_lab.measuring.operations import operations
from illava_lab.method import adding
from illava_lab.sites import sums

ENCODER, LLM, ELSE = 40, 60, 40  # at most, for each reduction in the encoder, in the LLM, and for all else in a prefill
BEFORE = {"fastv-75": 163, "illava-image": 578, "illava-2026-89": 1338, "tome-16": 1914, "visionzip-64": 198}
IMAGE_TOKEN = 199


@pytest.fixture(scope="module")
def model() -> LlavaForConditionalGeneration:
    """Of the depth and the tokens of LLaVA-1.5-7B, and narrow: the number of operations does not depend on width."""
    torch.manual_seed(0)
    narrow = dict(hidden_size=64, intermediate_size=64)
    vision = CLIPVisionConfig(**narrow, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14)
    text = LlamaConfig(
        **narrow, num_hidden_layers=32, num_attention_heads=4, vocab_size=200, max_position_embeddings=1024
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, vision_feature_layer=-2)
    return LlavaForConditionalGeneration(config).eval()


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    ids = torch.cat([torch.arange(1, 20), torch.full((576,), IMAGE_TOKEN), torch.arange(20, 60)])[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 336, 336)}


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large blocks of attention, and additions by one operation."""
    monkeypatch.setattr(sums, "CPU_WEIGHTS", sums.ACCELERATOR_WEIGHTS)
    monkeypatch.setattr(sums, "LEAST_WEIGHTS", sums.ACCELERATOR_WEIGHTS)
    monkeypatch.setattr(adding, "ADD_IN_ORDER", set())


@torch.no_grad()
def test_a_prefill_asks_for_few_operations(model, inputs, as_on_an_accelerator):
    def run() -> None:
        model(**inputs, use_cache=True)

    run()
    bare = operations(run).total()
    with il.attach(model, "none"):
        run()  # where the patches of a picture lie is made once
        assert operations(run).total() == bare
    for name, before in BEFORE.items():  # what the same prompt took in November 2026
        preset = il.presets()[name]
        strategy, schedule = il.get_strategy(preset.strategy)(**preset.settings), il.Schedule.preset(name, model)
        with il.attach(model, strategy, schedule):
            run()
            more = operations(run).total() - bare
        assert more > 0
        limit = ENCODER * len(schedule.encoder) + LLM * len(schedule.llm) + ELSE
        assert more <= limit < before, f"{name}: {more} more than the {bare} of the bare model, at most {limit}"
