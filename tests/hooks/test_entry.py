"""In front of the first layer of the LLM: one more place, at which tokens go as if the encoder had left them out."""

from __future__ import annotations

import pytest
import torch
from conftest import KINDS, Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY, lengths

import illava_lab as il
from illava_lab.models.families import describe

# Where no placeholder is interpolated from several patches, and no layer adds features of its own.
ALIKE = [kind for kind in KINDS if kind not in ("onevision", "next", "next-video", "qwen3-vl", "qwen3-vl-moe")]


@pytest.mark.parametrize("kind", ALIKE)
@torch.no_grad()
def test_what_goes_there_is_what_the_encoder_would_have_left_out(kind):
    """Behind the last layer's attention every patch is on its own, so it is all the same where it is dropped."""
    model = shared_llava(kind)
    inputs = make_inputs([Prompt(text_after=3, seed=1), Prompt(text_after=6, seed=1)], kind)
    last = describe(model).encoder_depth - 1
    seen = inputs["attention_mask"].bool()
    for positions in ("original", "packed") if describe(model).cells is None else ("original",):
        out = {}
        for schedule in (il.Schedule({last: 0.5}, {2: 0.5}), il.Schedule(llm={0: 0.5, 2: 0.5})):
            with il.attach(model, "stride", schedule, positions=positions) as trace:
                logits = model(**inputs, use_cache=True)
                held = lengths(logits.past_key_values)
                tokens = model.generate(**inputs, max_new_tokens=6, **GREEDY)
                uncached = model.generate(**inputs, max_new_tokens=6, **GREEDY | {"use_cache": False})
                sources = [trace.sources(image).anchor.tolist() for image in range(2)]
            assert torch.equal(tokens, uncached)
            out[bool(schedule.encoder)] = logits.logits[seen], held, tokens, sources
        torch.testing.assert_close(out[True][0], out[False][0], atol=1e-4, rtol=1e-4)
        assert out[True][1] == out[False][1]
        assert torch.equal(out[True][2], out[False][2]) and out[True][3] == out[False][3]


def test_who_needs_a_layer_before_is_refused_before_any_work():
    model = shared_llava("clip-llama")
    with pytest.raises(il.LabError, match="llm layer 0 is out of range; this model allows 1 to 3"):
        il.attach(model, "fastv", il.Schedule(llm={0: 9})).__enter__()
    with pytest.raises(il.LabError, match="llm layer 0 is out of range; this model allows 1 to 3"):
        il.attach(shared_llava("qwen3-vl"), "stride", il.Schedule(llm={0: 9})).__enter__()  # layer 0 adds features


@torch.no_grad()
def test_a_budget_there_is_what_torch_counts():
    from illava_lab.measuring import measure
    from illava_lab.schedules.flops import prefill_flops

    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt()])
    for name in ("cdpruner", "divprune"):
        schedule = il.Schedule.for_budget(name, model, keep=0.5, stages=["llm"])
        assert dict(schedule.llm) == {0: 18}
        counted = measure.cost(model, inputs, il.get_strategy(name)(), schedule)
        text = measure.text_tokens(model, inputs)
        expected = prefill_flops(model, il.get_strategy(name)(), schedule, text_tokens=text)
        assert expected == pytest.approx(counted.prefill_flops, rel=0.01) and counted.tokens_llm == 18
