"""Proportional attention in the LLM: what was merged goes on to count, against recomputation by hand."""

from __future__ import annotations

import pytest
import torch
from conftest import IMAGE_TOKEN, KINDS, Prompt, make_inputs, picture, random_llava, shared_llava
from helpers import reference
from helpers.attached import GREEDY, has_video
from helpers.qwen import PACKED
from helpers.rehearsal import rehearsing

import illava_lab as il

CONTENTS = {"image": Prompt(seed=11), "two images": Prompt(2, seed=3), "video": Prompt(0, seed=7, videos=1)}


class Counting(il.get_strategy("illava")):  # type: ignore[misc]
    """iLLaVA, whose merged tokens count as many."""

    name = "counting"
    proportional_in_llm = True


class CountingToMe(il.get_strategy("tome")):  # type: ignore[misc]
    """ToMe, whose merged tokens count as many in the LLM, too."""

    name = "counting-tome"
    proportional_in_llm = True


@pytest.mark.parametrize("content", list(CONTENTS))
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in PACKED])
def test_every_step_of_cached_generation_counts_what_was_merged(kind, content):
    """Merged in the LLM; and in the encoder, where no placeholder shares a patch with another."""
    if CONTENTS[content].videos and not has_video(kind):
        return
    model, inputs = shared_llava(kind), make_inputs([CONTENTS[content]], kind)
    prompt = inputs["input_ids"].shape[1]
    cases = [(Counting(), "illava", {}, {1: 0.7, 3: 6})]
    if kind == "clip-llama":
        cases.append((CountingToMe(), "tome", {0: 25, 1: 18, 2: 12}, {}))
    for strategy, rule, encoder, llm in cases:
        with il.attach(model, strategy, il.Schedule(encoder, llm)):
            out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **GREEDY)
        for step, got in enumerate(out.logits):
            ids = out.sequences[0, : prompt + step].tolist()
            visuals = reference.visuals(inputs, lambda *size: picture(kind, *size), model.config)
            how = dict(prompt=prompt, encoder=encoder, llm=llm, rule=rule, image_token=IMAGE_TOKEN)
            want = reference.logits(model, ids, visuals, weighs=True, **how)
            torch.testing.assert_close(got[0], want, atol=1e-4, rtol=1e-4)
            plain = reference.logits(model, ids, visuals, **how)
            assert not torch.allclose(got[0], plain, atol=1e-3), "sizes made no difference"


def test_with_graphs_answers_are_the_same_with_pictures_and_without():
    model, schedule = shared_llava("clip-llama"), il.Schedule({1: 20}, {2: 0.5})
    prompts = [make_inputs([Prompt(1, 8, seed=3)], "clip-llama"), make_inputs([Prompt(0, 8, seed=4)], "clip-llama")]
    with il.attach(model, Counting(), schedule):
        wanted = [model.generate(**inputs, max_new_tokens=5, **GREEDY) for inputs in prompts]
    with rehearsing() as recorder, il.attach(model, Counting(), schedule, graphs=True):
        for _ in range(3):
            for inputs, tokens in zip(prompts, wanted, strict=True):
                assert torch.equal(model.generate(**inputs, max_new_tokens=5, **GREEDY), tokens)
    assert recorder.replayed


def test_a_kernel_that_takes_no_mask_of_numbers_is_refused():
    model = random_llava("clip-llama")
    model.model.language_model.config._attn_implementation = "flash_attention_2"
    refused = pytest.raises(il.LabError, match="'counting' needs sdpa or eager attention in the LLM")
    with refused, il.attach(model, Counting(), il.Schedule(llm={1: 0.5})):
        pass
