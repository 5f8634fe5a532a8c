"""Families that differ from another in little more than their name: the same weights give the same reduced logits."""

from __future__ import annotations

import pytest
import torch
from conftest import Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY
from transformers import Glm46VConfig, Glm46VForConditionalGeneration, Idefics3Config, Idefics3ForConditionalGeneration
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

import illava_lab as il


def idefics3(config):
    vision = Idefics3VisionConfig(**{**config["vision_config"], "model_type": "idefics3_vision"})
    return Idefics3ForConditionalGeneration(Idefics3Config(**{**config, "vision_config": vision}))


def glm46v(config):
    return Glm46VForConditionalGeneration(Glm46VConfig(**config))


@pytest.mark.parametrize(("known", "build"), [("smolvlm", idefics3), ("glm-4.1v", glm46v)])
@torch.no_grad()
def test_a_twin_does_what_its_family_does(known, build):
    model, inputs = shared_llava(known), make_inputs([Prompt(2, seed=0), Prompt(1, seed=2)], known)
    config = {
        name: value for name, value in model.config.to_dict().items() if name not in ("model_type", "architectures")
    }
    twin = build(config).eval()
    twin.load_state_dict(model.state_dict())
    schedule, out = il.Schedule({1: 0.6}, {2: 0.5}), []
    for one in (model, twin):
        with il.attach(one, "illava", schedule) as trace:
            out.append((one(**inputs).logits, one.generate(**inputs, max_new_tokens=3, **GREEDY), trace.images_per_row))
    assert torch.equal(out[0][0], out[1][0]) and torch.equal(out[0][1], out[1][1]) and out[0][2] == out[1][2] == [2, 1]
