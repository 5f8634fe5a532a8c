"""Down-sampling is what a model would do with a smaller picture, and nothing else."""

from __future__ import annotations

import pytest
import torch
from conftest import IMAGE_TOKEN, PATCH, PATCHES, Prompt, make_inputs
from torch.nn.functional import interpolate

import illava_lab as il
from illava_lab.measuring import measure


@pytest.mark.parametrize("size", [(4, 4), (5, 6), (1, 1)])
@torch.no_grad()
def test_it_equals_the_bare_model_given_a_smaller_picture(model, size: tuple[int, int]) -> None:
    inputs, keep = make_inputs([Prompt()]), size[0] * size[1]
    with il.attach(model, "downsample", il.Schedule(image=keep), positions="packed"):
        got = model(**inputs, logits_to_keep=1).logits

    pixels = interpolate(inputs["pixel_values"], (size[0] * PATCH, size[1] * PATCH), mode="bicubic", antialias=True)
    out = model.model.vision_tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True, return_dict=True)
    features = out.hidden_states[model.config.vision_feature_layer]
    if model.config.vision_feature_select_strategy == "default":
        features = features[:, 1:]
    features = model.model.multi_modal_projector(features)[0]
    ids = inputs["input_ids"][0]
    first = int((ids == IMAGE_TOKEN).int().argmax())
    words = model.get_input_embeddings()(ids)
    embeds = torch.cat([words[:first], features, words[first + PATCHES :]])[None]
    want = model(inputs_embeds=embeds, logits_to_keep=1).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_its_savings_in_the_encoder_count_and_every_patch_is_accounted_for(model) -> None:
    inputs, schedule = make_inputs([Prompt()]), il.Schedule(image=16)
    strategy = il.get_strategy("downsample")()
    cost = measure.cost(model, inputs, strategy, schedule)
    assert (cost.tokens, cost.tokens_encoder, cost.tokens_llm) == (16, 16, 16)
    late = measure.cost(model, inputs, il.get_strategy("random")(), il.Schedule(llm={1: 16}))
    assert cost.prefill_flops < late.prefill_flops / 1.5
    with il.attach(model, strategy, schedule) as trace:
        model(**inputs)
    sources = trace.sources(0)
    assert sources.weights.shape == (16, PATCHES) and (sources.owner() >= 0).all()
    torch.testing.assert_close(sources.weights.sum(1), torch.ones(16, dtype=torch.float64))


def test_only_pictures_of_whole_rows_and_columns(model) -> None:
    strategy = il.get_strategy("downsample")()
    assert [strategy.reachable_keep(k, (14, 14)) for k in (196, 190, 180, 100, 98, 3, 1)] == [
        196,
        196,
        182,
        100,
        100,
        2,
        1,
    ]
    with (
        pytest.raises(il.LabError, match="downsample cannot make 17 of 36 patches; the nearest is 16"),
        il.attach(model, "downsample", il.Schedule(image=17)),
    ):
        pass
    with (
        pytest.raises(il.LabError, match="'illava' serves encoder and llm; the schedule asks for the image stage"),
        il.attach(model, "illava", il.Schedule(image=16)),
    ):
        pass
    assert il.Schedule.for_budget("downsample", model, keep=0.5).image == 16
