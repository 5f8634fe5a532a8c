"""A random turn of every family and strategy: any schedule, batch and way to generate; some things are always true.

A turn is fixed by its seed, which a failure names.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch
from conftest import KINDS, Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY, has_video, keep_everything, structure

import illava_lab as il
from illava_lab.models.families import describe

pytestmark = pytest.mark.slow

STRATEGIES = [
    ("illava", {}), ("illava", {"ramp": "size", "score": "lse"}),
    ("illava-2026", {}), ("illava-2026", {"mode": "nearest"}),
    ("tome", {}), ("tome", {"sizes": "reset", "attention": "plain", "order": "raster"}),
    ("random", {"seed": 3}), ("stride", {}), ("visionzip", {"score": "received", "merge": "mean"}),
    ("divprune", {}), ("pool", {"bins": "disjoint"}), ("fastv", {}),
    ("pyramiddrop", {}), ("dart", {"pivot_text_token": 1}), ("sparsevlm", {}), ("sparsevlm", {"recycle": True}),
]  # fmt: skip


def recording(strategy: il.Strategy, maps: list[il.TokenMap], again: bool) -> il.Strategy:
    """The same strategy, which notes its maps; or, `again`, returns those instead of its own, in the same order."""

    class Recording(type(strategy)):
        def map(self, tokens: il.Tokens, keep: int) -> il.TokenMap:
            own = super().map(tokens, keep)
            if again:
                return maps.pop(0)
            maps.append(own)
            return own

    return Recording(**dataclasses.asdict(strategy))


def drawn_schedule(draw: random.Random, strategy: il.Strategy, model: Any) -> il.Schedule:
    anatomy = describe(model)
    # ToMe at most halves, and what it leaves is rounded: stay above.
    least = 0.6 if strategy.smallest_keep else 0.3
    first = max(anatomy.first_llm_layer, strategy.first_llm_layer)
    layers = {"encoder": range(anatomy.encoder_depth), "llm": range(first, len(anatomy.llm_layers))}
    plan = {
        stage: {
            layer: draw.uniform(least, 1.0)
            for layer in draw.sample(layers[stage], draw.randint(1, min(3, len(layers[stage]))))
        }
        for stage in strategy.stages
    }
    if len(plan) == 2 and draw.random() < 0.5:
        del plan[draw.choice(list(plan))]
    return il.Schedule(**plan)


def longer(inputs: dict[str, torch.Tensor], sequences: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs of prompts with what was generated after them."""
    more = sequences.shape[1] - inputs["input_ids"].shape[1]
    out = {
        **inputs,
        "input_ids": sequences,
        "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, more), value=1),
    }
    if "mm_token_type_ids" in inputs:
        out["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, more))
    return out


def placed(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the positions that `generate` gives: padding does not count. DART's norms of rotated keys depend on them."""
    if "mm_token_type_ids" in inputs:  # Qwen makes its own of this kind
        return inputs
    return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_turns(kind: str) -> None:
    for seed, (name, settings) in enumerate(STRATEGIES, len(STRATEGIES) * KINDS.index(kind)):
        try:
            turn(random.Random(seed), kind, name, settings)
        except Exception as error:
            if isinstance(error, il.LabError) and "linear attention" in str(error):
                continue  # who asks what a layer to come would attend to is refused where it has no attention
            raise AssertionError(f"turn {seed}: {error}") from error


def turn(draw: random.Random, kind: str, name: str, settings: dict[str, Any]) -> None:
    model, strategy = shared_llava(kind), il.get_strategy(name)(**settings)
    schedule = drawn_schedule(draw, strategy, model)
    prompts = [
        Prompt(
            draw.randint(0, 2), draw.randint(1, 9), draw.randint(0, 99), draw.randint(0, 1) if has_video(kind) else 0
        )
        for _ in range(draw.randint(1, 3))
    ]
    prompts[0].images = max(1, prompts[0].images)
    inputs = make_inputs(prompts, kind)
    real = inputs["attention_mask"].bool()
    bare, before = model(**inputs).logits[real], structure(model)

    # 1. Identity.
    with il.attach(model, strategy, keep_everything(schedule)):
        assert torch.equal(model(**inputs).logits[real], bare), "keeping everything changed the logits"

    # 2. Cache: what was generated with it is what the same kept tokens give without it.
    sampling = draw.choice([{}, {"do_sample": True, "temperature": 1.5}, {"do_sample": True, "top_k": 5}])
    torch.manual_seed(0)
    maps: list[il.TokenMap] = []
    with il.attach(model, recording(strategy, maps, again=False), schedule):
        how = {**GREEDY, **sampling, "return_dict_in_generate": True, "output_logits": True}
        out = model.generate(**inputs, max_new_tokens=3, **how)
    with il.attach(model, recording(strategy, maps, again=True), schedule):
        whole = model(**longer(inputs, out.sequences)).logits[:, -4:-1]
    torch.testing.assert_close(torch.stack(out.logits, 1), whole, atol=2e-4, rtol=2e-4, msg=lambda m: f"cache: {m}")

    # 3. Batch.
    with il.attach(model, strategy, schedule) as trace:
        together = model(**placed(inputs)).logits[real]
        assert all(step.after <= step.before for step in trace.steps)
        alone = torch.cat([model(**placed(make_inputs([prompt], kind))).logits[0] for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=2e-4, msg=lambda m: f"batch: {m}")

    # 4. Restoration.
    assert structure(model) == before, "something was left behind"
    assert torch.equal(model(**inputs).logits[real], bare), "the model answers differently afterwards"
