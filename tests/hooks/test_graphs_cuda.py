"""Captured graphs on the device that has them: the answers are those without, to rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import KINDS, Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY
from hooks.test_graphs import REDUCTIONS

import illava_lab as il
from illava_lab.hooks.graphs import store

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="captured graphs need a CUDA device")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_with_graphs_equal_those_without(kind, dtype):
    model = copy.deepcopy(shared_llava(kind)).to("cuda", dtype)
    for name, schedule in REDUCTIONS.items():
        for prompts in ([Prompt(1, 8, seed=3)], [Prompt(1, 5, seed=1), Prompt(1, 8, seed=2)]):
            inputs = {key: x.to("cuda") for key, x in make_inputs(prompts, kind).items()}
            inputs = {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}
            with torch.no_grad(), il.attach(model, name, schedule):
                wanted = model(**inputs, use_cache=True).logits[:, -1].float()
                tokens = model.generate(**inputs, max_new_tokens=7, **GREEDY)
            for _ in range(4):  # plainly, captured, replayed; each time attached anew
                torch.full((1 << 22,), torch.nan, device="cuda")  # what is free again must not be read
                with torch.no_grad(), il.attach(model, name, schedule, graphs=True):
                    logits = model(**inputs, use_cache=True).logits[:, -1].float()
                    again = model.generate(**inputs, max_new_tokens=7, **GREEDY)
                step = torch.finfo(dtype).eps
                assert torch.allclose(logits, wanted, rtol=16 * step, atol=16 * step * float(wanted.abs().max()))
                if dtype == torch.float32:
                    assert torch.equal(again, tokens)
    (graphs,) = store._stores.values()
    assert not graphs._refused
    assert len(graphs._kept) >= 2
    store._stores.clear()
