"""Counts that the picture decides: rows that differ in length are what each picture would be alone."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import PATCHES, Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY

import illava_lab as il


class BySign(il.Strategy):
    """Keep the tokens whose first channel is above its mean: how many these are, the picture decides."""

    name = "by-sign"
    own_count = True

    def count(self, tokens, keep):
        return self.above(tokens).sum(dim=1).clamp_min(1 + tokens.protected_count)

    def above(self, tokens):
        first = tokens.hidden[..., 0].masked_fill(tokens.protected, math.nan)
        return (first > first.nanmean(dim=1, keepdim=True)) | tokens.protected

    def map(self, tokens, keep):
        return il.TokenMap.keep(il.highest(self.above(tokens).float(), keep, tokens), tokens.count)


PROMPTS = [Prompt(text_after=3, seed=1), Prompt(text_after=6, seed=2), Prompt(text_after=4, seed=3)]


def left(trace: il.Trace) -> list[int]:
    return [trace.left(image) for image in range(sum(trace.images_per_row))]


def check_alone(model, kind: str, strategy: il.Strategy, schedule: il.Schedule) -> list[int]:
    """A batch equals its prompts alone, with a cache and without; what each picture kept of its tokens."""
    inputs = make_inputs(PROMPTS, kind)
    seen = inputs["attention_mask"].bool()
    with il.attach(model, strategy, schedule) as trace, torch.no_grad():
        together = model(**inputs).logits
        counts, sources = left(trace), [trace.sources(image) for image in range(len(PROMPTS))]
        tokens = model.generate(**inputs, max_new_tokens=5, **GREEDY)
        assert torch.equal(tokens, model.generate(**inputs, max_new_tokens=5, **GREEDY | {"use_cache": False}))
        for row, prompt in enumerate(PROMPTS):
            alone = model(**make_inputs([prompt], kind)).logits[0]
            torch.testing.assert_close(together[row, seen[row]], alone, atol=1e-4, rtol=1e-4)
            assert left(trace) == [counts[row]] == [len(sources[row].anchor)]
            torch.testing.assert_close(trace.sources(0).weights, sources[row].weights)
    return counts


@pytest.mark.parametrize("kind", ["clip-llama", "siglip-qwen2", "next", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
def test_a_batch_equals_its_pictures(kind):
    counts = check_alone(shared_llava(kind), kind, BySign(), il.Schedule({1: 0.5, 3: 0.5}, {2: 0.5}))
    assert len(set(counts)) > 1, "pictures differ in what they keep"


def test_proportional_attention_goes_with_it():
    class ByTome(il.get_strategy("tome")):
        """ToMe that merges more where more tokens are alike."""

        name = "by-tome"
        own_count = True

        def count(self, tokens, keep):
            alike = self._similarity(tokens).amax(dim=2) > 0.5
            return tokens.count - alike.sum(dim=1).clamp_max((tokens.count - tokens.protected_count) // 2)

    assert len(set(check_alone(shared_llava("clip-llama"), "clip-llama", ByTome(), il.Schedule({0: 0.8, 2: 0.8})))) > 1


@torch.no_grad()
def test_what_cannot_be_is_refused():
    with pytest.raises(
        il.LabError, match="lets pictures decide how many of their tokens stay, which this tower cannot"
    ):
        il.attach(shared_llava("internvl"), BySign(), il.Schedule({1: 0.5})).__enter__()
    model, inputs = shared_llava("onevision"), make_inputs([Prompt(images=0, videos=1)], "onevision")
    with (
        il.attach(model, BySign(), il.Schedule({1: 0.5})),
        pytest.raises(il.LabError, match="cannot decide how many of their tokens stay where a model interpolates"),
    ):
        model(**inputs)

    class TooMany(BySign):
        name = "too-many"

        def count(self, tokens, keep):
            return super().count(tokens, keep) + PATCHES

    with (
        il.attach(shared_llava("clip-llama"), TooMany(), il.Schedule({1: 0.5})),
        pytest.raises(il.LabError, match="'too-many': count must be from 1 to 37 for these tokens"),
    ):
        shared_llava("clip-llama")(**make_inputs([Prompt()]))


@torch.no_grad()
def test_prumerge_keeps_its_outliers():
    model, strategy = shared_llava("clip-llama"), il.get_strategy("prumerge")(decides="image")
    inputs, seen = make_inputs(PROMPTS), []

    class Look(il.get_strategy("prumerge")):
        """What the reference would select."""

        name = "look"

        def map(self, tokens, keep):
            seen.extend(self.outliers(tokens).sum(dim=1).tolist())
            return super().map(tokens, keep)

    with il.attach(model, Look(), il.Schedule({3: 9})):
        model(**inputs)
    with il.attach(model, strategy, il.Schedule({3: 9})) as trace:
        model(**inputs)
        assert left(trace) == [max(2, outliers + 1) for outliers in seen]
    check_alone(model, "clip-llama", strategy, il.Schedule({3: 9}))
    typical = sum(left(trace)) / 3 / PATCHES
    with il.attach(
        model, il.get_strategy("prumerge")(decides="image", typical=typical), il.Schedule({3: 0.5})
    ) as trace:
        model(**inputs)
        assert sum(left(trace)) / 3 == pytest.approx(PATCHES / 2, abs=1.5), "the budget holds in the mean"


@torch.no_grad()
@pytest.mark.parametrize("score", ["lse", "attention"])
def test_illava_keeps_the_cells_that_its_patches_touch(score):
    """Patches are ranked; of n, round(0.6 n) down to whole cells stay, and with them every cell that one is in."""
    model, seen = shared_llava("qwen2-vl"), []
    inputs = make_inputs([Prompt(seed=1), Prompt(seed=2)], "qwen2-vl")
    strategy = il.get_strategy("illava-2026")(score=score, cells="touched", mode="drop")

    class Look(type(strategy)):
        """Note the scores of patches."""

        name = "look"

        def map(self, tokens, keep):
            seen.append((self._of_patches(tokens), super().map(tokens, keep).anchor))
            return super().map(tokens, keep)

    with il.attach(model, Look(score=score, cells="touched", mode="drop"), il.Schedule({1: 0.3})) as trace:
        model(**inputs)
    for scores, anchor in seen:
        for own, kept in zip(scores.tolist(), anchor.tolist(), strict=True):
            flat = [(-value, cell, patch) for cell, values in enumerate(own) for patch, value in enumerate(values)]
            wanted = max(4, round(len(flat) * 0.3) // 4 * 4)
            assert kept == sorted({cell for _, cell, _ in sorted(flat)[:wanted]})
    nominal = [0.3 * trace.layout(image).tokens for image in range(2)]
    assert all(count > asked for count, asked in zip(left(trace), nominal, strict=True)), "0.3 is nominal"
