"""A run as JSON says what the trace says: every patch, every token, every operation and byte."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.every import every
from helpers.labs import noise
from helpers.small_labs import FAMILIES, small_lab

import illava_lab as il
from illava_lab.trace.trace import Trace
from illava_lab.views.moves import states
from illava_lab.views.run import run_of

QUESTION = "What color is the circle?"
PICTURE = il.data_dir() / "samples" / "shapes.png"
FILM = [noise(40, 60, seed) for seed in range(3)]
SHOWN = {"picture": noise(50, 100), "pictures": [noise(60, 60, 1), noise(30, 90, 2)]}


def stored(*args: Any, **settings: Any) -> dict[str, Any]:
    """A run that was written to a file and read again."""
    return json.loads(json.dumps(run_of(*args, **settings), allow_nan=False))


def assert_told(run: dict[str, Any], trace: Trace) -> None:
    """Every token of the last layer is there, with its place and its members; every patch is accounted for."""
    last, first, token = states(run)[-1], 0, 0
    for image in range(trace.images_per_row[0]):
        sources = trace.sources(image)
        count, patches = sources.weights.shape
        own = last.weights[token : token + count, first : first + patches].toarray()
        assert np.array_equal(last.anchor[token : token + count] - first, sources.anchor)
        assert np.array_equal(own != 0, sources.weights.numpy() != 0), "the same members"
        assert np.allclose(own, sources.weights, atol=0.02)
        owner = last.owner()[first : first + patches]
        assert np.array_equal(owner < 0, sources.owner().numpy() < 0), "the same patches have fallen"
        token, first = token + count, first + patches
    assert last.weights.shape == (token, first), "and nothing else is there"


@pytest.mark.parametrize(
    "strategy",
    [
        s if s.label == s.name else pytest.param(s, marks=pytest.mark.slow)
        for s in every()
        if "image" in s.media and getattr(s, "relevance", None) != "clip"  # it needs the text tower of CLIP
    ],
    ids=lambda strategy: strategy.label,
)
def test_what_each_method_did_with_every_patch(strategy: il.Strategy) -> None:
    lab = small_lab("embedded")
    keep = None if strategy.kind == "none" else 0.6
    run = stored(lab, PICTURE, QUESTION, strategy, keep)
    answer = lab.ask(PICTURE, QUESTION, strategy, keep)
    assert_told(run, answer.trace)
    assert run["answer"]["text"] == answer.text and run["label"] == strategy.label
    # Between the moves, nothing happens; each is where the trace has a step.
    names = list(zip(run["layers"]["stage"], run["layers"]["layer"], strict=True))
    steps = {("patches", 0) if step.stage == "image" else (step.stage, step.layer) for step in answer.trace.steps}
    moved = {names[move["at"]] for move in run["moves"]}
    assert moved == steps or (strategy.own_count and moved < steps)  # where a picture keeps all, nothing moves
    assert run["layers"]["tokens"] == [len(state.anchor) for state in states(run)]
    assert len(json.dumps(run, separators=(",", ":"))) < 40_000


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize(
    "family", [f if f in ("embedded", "onevision") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_crops_tiles_and_several_pictures(family: str, shown: str) -> None:
    lab, schedule = small_lab(family), il.Schedule(encoder={0: 0.7, 1: 0.8}, llm={1: 0.6})
    run = stored(lab, SHOWN[shown], QUESTION, "illava", schedule=schedule, max_new_tokens=2)
    trace = lab.ask(SHOWN[shown], QUESTION, "illava", schedule=schedule, max_new_tokens=2).trace
    assert_told(run, trace)
    rows = sum(trace.layout(image).patches[0] for image in range(trace.images_per_row[0]))
    assert len(run["views"]) == len({view["name"] for view in run["views"]}) == rows
    for view in run["views"]:
        left, top, right, bottom = view["window"]
        assert left < right and top < bottom and view["picture"].startswith("data:image/webp;base64,")


def test_a_film() -> None:
    lab, film = small_lab("onevision"), il.read_video(FILM, frames=3)
    run = stored(lab, film, QUESTION, "tome", 0.6, max_new_tokens=2)
    assert_told(run, lab.ask(film, QUESTION, "tome", 0.6, max_new_tokens=2).trace)
    assert [view["name"] for view in run["views"]] == ["frame 1", "frame 2", "frame 3"]


@pytest.mark.parametrize("family", ["embedded", "onevision"])
def test_costs(family: str) -> None:
    lab, schedule = small_lab(family), il.Schedule(encoder={0: 0.7, 1: 0.8}, llm={1: 0.6})
    picture, strategy = SHOWN["picture"], il.get_strategy("illava")()
    run = stored(lab, picture, QUESTION, strategy, schedule=schedule, max_new_tokens=2)
    inputs = lab.inputs([picture], [QUESTION])
    text, shown = il.measure.text_tokens(lab.model, inputs), il.measure.layouts(lab.model, inputs)
    with il.attach(lab.model, strategy, schedule) as trace:
        cache, _ = il.measure.memory(lab.model, inputs)
        share = il.measure.prefill_flops(lab.model, strategy, schedule, text_tokens=text, trace=trace)
    share /= il.measure.prefill_flops(lab.model, text_tokens=text, layouts=shown)
    assert sum(run["layers"]["cache"]) == cache
    assert sum(run["layers"]["flops"]) == pytest.approx(100 * share, abs=0.05)
    assert sum(run["layers"]["bare"]) == pytest.approx(100, abs=0.05)
    bare = stored(lab, picture, QUESTION, max_new_tokens=2)
    assert set(bare["layers"]["cache"]) == {0, run["bare_cache"]} and bare["layers"]["flops"] == run["layers"]["bare"]


def test_words_are_the_models_own() -> None:
    lab = small_lab("embedded")
    words = stored(lab, PICTURE, QUESTION, "random", 0.2)["answer"]["words"]
    inputs = lab.inputs([PICTURE], [QUESTION])
    strategy = il.get_strategy("random")()
    with il.attach(lab.model, strategy, il.Schedule.for_budget(strategy, lab.model, keep=0.2)):
        odds = il.measure.prefill(lab.model, inputs).logits[0, -1].softmax(-1)
    top = odds.topk(5)
    assert [word for word, _ in words[0]] == lab.processor.tokenizer.convert_ids_to_tokens(top.indices.tolist())
    assert [odds for _, odds in words[0]] == pytest.approx(top.values.tolist(), abs=1e-4)
    assert words[1][0][0] == "</s>", "the end is a word, too"
