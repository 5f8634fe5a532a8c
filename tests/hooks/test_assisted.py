"""Drafts that are rejected, caches that are cropped, reordered and repeated: the same tokens as plain greedy decoding."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from conftest import KINDS, QUICK_KINDS, Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY
from helpers.qwen import PACKED

import illava_lab as il
from illava_lab.models.families import describe

# Before transformers 5.13, looking drafts up needs a token that ends an answer; this one never comes.
DECODING = GREEDY | {"eos_token_id": 2, "suppress_tokens": [*GREEDY["suppress_tokens"], 2]}
FORGETTING = [kind for kind in KINDS if kind != "qwen3.5-vl"]  # a state cannot give back what was drafted
REDUCTIONS = {
    "fastv": il.Schedule(llm={1: 0.5, 3: 0.4}),
    "illava": il.Schedule({0: 0.7, 2: 16}, {1: 0.6, 3: 0.5}),
    "tome": il.Schedule({0: 28, 1: 20}),
    "stride": il.Schedule({1: 0.5}, {2: 0.5}),
    "sparsevlm": il.Schedule(llm={1: 0.7, 2: 0.6}),
}


@pytest.fixture
def model(kind):
    return shared_llava(kind)


@cache
def assistant(kind: str):
    """A model that drafts otherwise than the first one decides, but often enough alike."""
    other = copy.deepcopy(shared_llava(kind))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in describe(other).llm_layers[-1].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    other.generation_config.num_assistant_tokens = 3
    return other


def repeating(kind: str) -> dict:
    """A prompt whose text repeats itself, so that looking up drafts in it finds some."""
    inputs = make_inputs([Prompt(1, 8, seed=3)], kind)
    inputs["input_ids"][0, -8:] = torch.tensor([20, 21, 22, 20, 21, 22, 20, 21])
    return inputs


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in FORGETTING for name in REDUCTIONS if kind in QUICK_KINDS or name == "illava"],
)
def test_drafts_do_not_change_what_is_decoded(kind, model, name):
    inputs, other = repeating(kind), assistant(kind)
    with il.attach(model, name, REDUCTIONS[name]) as trace:
        plain = model.generate(**inputs, max_new_tokens=12, **DECODING)
        steps = [(step.layer, step.before, step.after) for step in trace.steps]
        looked_up = model.generate(**inputs, max_new_tokens=12, prompt_lookup_num_tokens=3, **DECODING)
        assert [(step.layer, step.before, step.after) for step in trace.steps] == steps
        drafted = model.generate(**inputs, max_new_tokens=12, assistant_model=other, **DECODING)
        recomputed = model.generate(**inputs, max_new_tokens=12, use_cache=False, **DECODING)
    # Before transformers 5.17, drafts may come to one token more than was asked for.
    assert torch.equal(looked_up[:, : plain.shape[1]], plain)
    assert torch.equal(drafted[:, : plain.shape[1]], plain)
    assert torch.equal(recomputed, plain), "what decides is the prompt, and not what was generated behind it"


# ---------------------------------------------------------------------------------------------- caches
@pytest.mark.parametrize("kind", FORGETTING)
@pytest.mark.parametrize("name", ["fastv", "illava", "tome"])
@torch.no_grad()
def test_a_cropped_cache_goes_on_as_if_the_end_had_not_been_there(kind, model, name):
    """Of generated tokens, of the text behind the image, absolute and relative; never of an image."""
    inputs = make_inputs([Prompt(1, 6, seed=4)], kind)
    length, more = inputs["input_ids"].shape[1], torch.tensor([[11, 12, 13]])
    with il.attach(model, name, REDUCTIONS[name]):

        def logits(cache, ids, start):
            positions = torch.arange(start, start + ids.shape[1])[None]
            if kind in PACKED:
                positions = (positions + model.model.rope_deltas).expand(3, 1, -1)
            mask = torch.ones(1, start + ids.shape[1], dtype=torch.long)
            return model(input_ids=ids, past_key_values=cache, position_ids=positions, attention_mask=mask).logits

        want_more = logits(model(**inputs).past_key_values, more, length)
        for crop in (-2, length):  # what was generated
            cache = model(**inputs).past_key_values
            logits(cache, torch.tensor([[30, 31]]), length)
            assert cache.get_seq_length() == length + 2
            cache.crop(crop)
            assert cache.get_seq_length() == length
            torch.testing.assert_close(logits(cache, more, length), want_more)
        cache = model(**inputs).past_key_values  # what the prompt ends with, given again
        cache.crop(-2)
        assert cache.get_seq_length() == length - 2
        again = logits(cache, torch.cat([inputs["input_ids"][:, -2:], more], 1), length - 2)
        torch.testing.assert_close(again[:, 2:], want_more, atol=1e-4, rtol=1e-4)
        with pytest.raises(il.LabError, match="cannot crop 30 tokens of the prompt"):
            model(**inputs).past_key_values.crop(-30)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_cache_whose_prompts_change_places_goes_on_with_each(kind, model):
    """Prompts of other lengths: what is hidden of each row changes places with it."""
    inputs = make_inputs([Prompt(1, 3, seed=1), Prompt(1, 9, seed=1)], kind)
    length = inputs["input_ids"].shape[1]
    token = torch.tensor([[11], [12]])

    def step(cache, ids, mask):
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], 1)
        positions = mask.long().cumsum(1)[:, -1:] - 1
        return model(input_ids=ids, past_key_values=cache, attention_mask=mask, position_ids=positions).logits[:, -1]

    with il.attach(model, "illava", REDUCTIONS["illava"]):
        mask = inputs["attention_mask"]
        want = step(model(**inputs).past_key_values, token, mask)
        for change, order in (
            (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
            (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
            (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        ):
            cache = model(**inputs).past_key_values
            change(cache)
            assert cache.get_seq_length() == length
            torch.testing.assert_close(step(cache, token[order], mask[order]), want[order], atol=1e-4, rtol=1e-4)
