"""FLOPs, cache and tokens against closed forms; times for their shape, not their value."""

from __future__ import annotations

import pytest
import torch
from conftest import PATCH, PATCHES, TEXT, VISION, Prompt, make_inputs, random_llava
from helpers.qwen import QWENS

import illava_lab as il
from illava_lab.measuring import measure
from illava_lab.method.strategy import Strategy
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens

SCHEDULE = il.Schedule(encoder={1: 30, 2: 20}, llm={2: 0.5})
NONE = il.get_strategy("none")()
# Random scores cost no operations that are counted, so the closed form is that of the model alone.
RANDOM = il.get_strategy("random")()


def by_hand(encoder: list[tuple[int, int]], image_tokens: int, llm: list[int], text: int) -> int:
    """FLOPs of a clip-llama of conftest.

    Args:
        encoder: per layer, tokens in its attention and tokens in its MLP, CLS included.
        image_tokens: visual tokens that the projector sees.
        llm: per layer, visual tokens in it; text: other tokens.
    """
    width, inner = VISION["hidden_size"], VISION["intermediate_size"]
    total = 2 * PATCHES * width * 3 * PATCH**2  # patch embedding
    for attention, mlp in encoder:
        total += 4 * 2 * attention * width**2 + 2 * 2 * attention**2 * width  # q, k, v, out; logits and mix
        total += 2 * 2 * mlp * width * inner
    hidden, inner = TEXT["hidden_size"], TEXT["intermediate_size"]
    total += 2 * image_tokens * (width * hidden + hidden * hidden)  # projector
    shared = hidden * TEXT["num_key_value_heads"] // TEXT["num_attention_heads"]
    for visual in llm:
        length = visual + text
        total += 2 * length * hidden * (2 * hidden + 2 * shared) + 2 * 2 * length**2 * hidden
        total += 3 * 2 * length * hidden * inner  # gated MLP
    return total + 2 * hidden * TEXT["vocab_size"]  # logits of the last position


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cost_equals_closed_forms(attention: str) -> None:
    model, inputs = random_llava("clip-llama", attention), make_inputs([Prompt()])
    text = inputs["input_ids"].shape[1] - PATCHES
    tower, decoder = VISION["num_hidden_layers"], TEXT["num_hidden_layers"]

    bare = measure.cost(model, inputs, NONE, il.Schedule())
    # The tower runs all its layers, although the projector takes the last but one.
    assert bare.prefill_flops == by_hand([(PATCHES + 1, PATCHES + 1)] * tower, PATCHES, [PATCHES] * decoder, text)
    head = TEXT["hidden_size"] // TEXT["num_attention_heads"]
    entry = 2 * TEXT["num_key_value_heads"] * head * 4  # keys and values of a token in one layer, float32
    assert bare.cache_bytes == decoder * (PATCHES + text) * entry
    assert (bare.tokens, bare.tokens_encoder, bare.tokens_llm) == (PATCHES, PATCHES, PATCHES)
    assert bare.peak_bytes > bare.cache_bytes

    reduced = measure.cost(model, inputs, RANDOM, SCHEDULE)
    encoder = [(37, 37), (37, 31), (31, 21)] + [(21, 21)] * (tower - 3)
    llm = [20, 20] + [10] * (decoder - 2)
    assert reduced.prefill_flops == by_hand(encoder, 20, llm, text)
    assert reduced.cache_bytes == (sum(llm) + decoder * text) * entry
    used = [36, 36, 30] + [20] * (tower - 4)
    assert reduced.tokens_encoder == pytest.approx(sum(used) / len(used))
    assert reduced.tokens_llm == pytest.approx(sum(llm) / len(llm))
    assert reduced.tokens == pytest.approx(sum(used + llm) / len(used + llm))


def test_scoring_is_not_free() -> None:
    model, inputs = random_llava("clip-llama"), make_inputs([Prompt()])
    schedule = il.Schedule(llm={2: 0.5})
    scored = measure.cost(model, inputs, il.get_strategy("fastv")(), schedule).prefill_flops
    free = measure.cost(model, inputs, RANDOM, schedule).prefill_flops
    # One row of attention logits in layer 1.
    assert scored - free == 2 * inputs["input_ids"].shape[1] * TEXT["hidden_size"]


def test_speeds_come_per_round_and_failures_stay_alone() -> None:
    class Fails(Strategy):
        name = "fails"

        def map(self, tokens: Tokens, keep: int) -> TokenMap:
            raise RuntimeError("on purpose")

    model, inputs = random_llava("siglip-qwen2"), make_inputs([Prompt(), Prompt(text_after=3, seed=1)])
    ticks: list[int] = []
    configurations = [(NONE, il.Schedule()), (Fails(), SCHEDULE), (RANDOM, SCHEDULE)]
    none, failed, reduced = measure.speeds(model, inputs, configurations, rounds=3, new_tokens=2, done=ticks.append)
    assert isinstance(failed, RuntimeError)
    for speed in (none, reduced):
        assert len(speed.prefill) == len(speed.decode) == 3
        assert min(speed.prefill + speed.decode) > 0
    assert sum(ticks) == 3 * 4


@pytest.mark.parametrize("kind", ["clip-llama", *QWENS])
def test_decoding_of_the_timing_is_that_of_generate(kind: str) -> None:
    model, inputs = random_llava(kind), make_inputs([Prompt(), Prompt(text_after=3, seed=1)], kind)
    with il.attach(model, RANDOM, SCHEDULE), torch.inference_mode():
        expected = model.generate(**inputs, max_new_tokens=4, eos_token_id=None, do_sample=False)[:, -4:]
    seen: list[torch.Tensor] = []
    handle = model.register_forward_pre_hook(lambda m, a, kw: seen.append(kw["input_ids"]), with_kwargs=True)
    try:
        measure.speeds(model, inputs, [(RANDOM, SCHEDULE)], rounds=1, new_tokens=4)
    finally:
        handle.remove()
    assert torch.equal(torch.cat(seen[1:5], dim=1), expected)


def test_ratio_divides_round_by_round() -> None:
    # The machine was slow in the second round, for both.
    found = measure.ratio([1.0, 5.0, 1.2, 1.0, 1.1], [2.0, 10.0, 2.0, 2.0, 2.0])
    assert found == pytest.approx((0.5, 0.5, 0.55))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, whose allocator counts")
def test_peak_memory_on_cuda() -> None:
    model = random_llava("clip-llama").cuda()
    inputs = {name: value.cuda() for name, value in make_inputs([Prompt()]).items()}
    bare, reduced = measure.cost(model, inputs, NONE, il.Schedule()), measure.cost(model, inputs, RANDOM, SCHEDULE)
    assert bare.peak_bytes > bare.cache_bytes > reduced.cache_bytes
