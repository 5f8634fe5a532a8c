"""Compositions: what is made of several strategies is a strategy like any other."""

from __future__ import annotations

import pytest
import torch
from conftest import Prompt, make_inputs, shared_llava

import illava_lab as il
from illava_lab.__main__ import main
from illava_lab.hooks.graphs.keys import strategy_key
from illava_lab.measuring.digest import digest
from illava_lab.method.registry import make_strategy
from illava_lab.models.families import describe

get = il.get_strategy
COMPOSED = {
    "tome + fastv": il.compose(encoder="tome", llm="fastv"),
    "vscan + cdpruner": il.compose(encoder="vscan", llm="cdpruner"),
    "illava at 0, visionzip at 3 + fastv at 1, pyramiddrop at 3": il.compose(
        encoder={3: "visionzip", 0: get("illava")}, llm={1: "fastv", 3: "pyramiddrop"}
    ),
}


@pytest.mark.parametrize("label", [pytest.param([*COMPOSED][1], marks=pytest.mark.slow), [*COMPOSED][2]])
def test_it_keeps_the_promises_of_a_strategy(label):
    assert COMPOSED[label].label == label
    assert il.check_strategy(COMPOSED[label]).passed


def test_a_name_of_two_is_a_composition():
    for name in ("tome+fastv", "tome + fastv"):
        assert make_strategy(name) == COMPOSED["tome + fastv"]
    assert make_strategy("prumerge++dart") == il.compose(encoder="prumerge+", llm="dart")
    assert make_strategy("prumerge+").name == "prumerge+"
    assert main(["compare", "--strategies", "tome+fastf", "--limit", "1"]) == 2
    assert main(["check", "stride+random"]) == 0
    with pytest.raises(il.LabError, match="unknown strategy 'tome.fastf'"):
        make_strategy("tome+fastf")


@pytest.mark.parametrize("label", COMPOSED)
@torch.no_grad()
def test_each_part_does_what_it_does_alone(label):
    """The same maps as the parts would make of the same tokens, and a batch equals its prompts."""
    model, strategy, seen = shared_llava("clip-llama"), COMPOSED[label], []

    class Look(type(strategy)):
        """Note who was asked for what."""

        def map(self, tokens, keep):
            out, part = super().map(tokens, keep), self.at(tokens.stage, tokens.layer)
            alone = part.map(tokens, keep)
            seen.append((tokens.stage, tokens.layer, part.name))
            assert torch.equal(out.anchor, alone.anchor) and torch.equal(out.matrix(), alone.matrix())
            return out

    depth, plan = describe(model).encoder_depth, {}
    encoder = {layer: 30 - 4 * n for n, layer in enumerate(strategy.layers("encoder", depth))}
    plan = il.Schedule(encoder, {layer: 12 - 3 * n for n, layer in enumerate(strategy.layers("llm", 4))})
    prompts = [Prompt(text_after=3, seed=1), Prompt(text_after=3, seed=2)]
    with il.attach(model, Look(strategy.encoder, strategy.llm), plan) as trace:
        together = model(**make_inputs(prompts)).logits
        asked = [*seen]
        for row, prompt in enumerate(prompts):
            torch.testing.assert_close(together[row], model(**make_inputs([prompt])).logits[0], atol=1e-4, rtol=1e-4)
    assert [(stage, layer) for stage, layer, _ in asked] == [
        *(("encoder", layer) for layer in plan.encoder), *(("llm", layer) for layer in plan.llm)
    ]  # fmt: skip
    assert [name for _, _, name in asked] == [strategy.at(stage, layer).name for stage, layer, _ in asked]
    assert len(trace.sources(0).anchor) == list(plan.llm.values())[-1]


def test_budgets_are_shared_over_the_stages_and_layers_of_its_parts():
    model = shared_llava("clip-llama")
    schedule = il.Schedule.for_budget("tome+fastv", model, keep=0.4)
    assert list(schedule.encoder) == [0, 1, 2, 3] and list(schedule.llm) == [2]
    assert list(schedule.llm.values()) == [round(36 * 0.4)]
    assert il.Schedule.for_budget("tome+fastv", model, keep=0.1).llm[2] == 4, "ToMe's half is no limit in the LLM"
    layers = il.Schedule.for_budget(
        COMPOSED["illava at 0, visionzip at 3 + fastv at 1, pyramiddrop at 3"], model, keep=0.3
    )
    assert list(layers.encoder) == [0, 3] and list(layers.llm) == [1, 3] and layers.llm[3] == 11
    before = il.Schedule.for_budget("vscan+cdpruner", model, keep=0.3)
    assert list(before.llm) == [0]
    assert il.Schedule.for_budget("tome+fastv", model, flops=0.6).reduces


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "compose needs a strategy for encoder, for llm, or for both"),
        ({"encoder": "fastv"}, "compose: fastv serves llm, not encoder"),
        ({"llm": "none"}, "compose: none serves no stage, not llm"),
        ({"llm": {}}, "llm must name a strategy for one layer at least"),
        ({"llm": {0: "fastv"}}, "fastv can reduce from llm layer 1 on, got layer 0"),
        ({"llm": {"2": "fastv"}}, "layers of llm are whole numbers of at least 0, got '2'"),
        ({"encoder": {1: "flowcut", 3: "vscan"}}, "flowcut and vscan both take notes in the encoder"),
        ({"encoder": "tome+fastv"}, "must be one strategy or layer -> strategy, got what is composed: tome . fastv"),
        ({"llm": "fastv", "frames": "every"}, "frames must be one of 'together', 'each'"),
        ({"llm": "evs", "frames": "each"}, "frames='each' leaves each frame as many tokens, which evs does not"),
        ({"encoder": "tom"}, "unknown strategy 'tom'; did you mean tome"),
    ],
)
def test_what_cannot_be_composed_is_refused(given, says):
    with pytest.raises(il.LabError, match=says):
        il.compose(**given)


@pytest.mark.parametrize("name", ["illava-2026", "pyramiddrop"])
def test_each_frame_of_a_video_is_reduced_as_if_it_were_alone(name):
    x, attention = torch.randn(2, 12, 6), torch.rand(2, 12)
    given = {"text_attention": attention, "next_text_attention": attention}
    tokens = il.Tokens("llm", x, layer=3, frames=(3, 4), **given)
    strategy = il.compose(llm=name, frames="each")
    out = strategy.map(tokens, 6)
    assert out.slots == 6 and strategy.count(tokens, 0.5).tolist() == strategy.count(tokens, 7).tolist() == [6, 6]
    for frame in range(3):
        part = slice(4 * frame, 4 * frame + 4)
        alone = get(name)().map(il.Tokens("llm", x[:, part], layer=3, **{n: v[:, part] for n, v in given.items()}), 2)
        whole = out.matrix()[:, 2 * frame : 2 * frame + 2]
        assert torch.equal(whole[:, :, part], alone.matrix()) and whole.sum() == alone.matrix().sum()
        assert torch.equal(out.anchor[:, 2 * frame : 2 * frame + 2], alone.anchor + 4 * frame)
    assert strategy.count(il.Tokens("llm", x, **given), 0.5) is None, "a picture is no video"
    with pytest.raises(il.LabError, match="keep must be a multiple of the 3 frames, got 5"):
        strategy.map(tokens, 5)


def test_a_layer_without_a_strategy_is_refused_before_any_work():
    strategy = il.compose(llm={1: "fastv", 3: "pyramiddrop"})
    with pytest.raises(il.LabError, match="has no strategy for llm layer 2; layers that have one: 1, 3"):
        il.attach(shared_llava("clip-llama"), strategy, il.Schedule(llm={2: 9})).__enter__()
    with pytest.raises(il.LabError, match="serves llm; the schedule asks for the encoder stage"):
        il.attach(shared_llava("clip-llama"), strategy, il.Schedule({2: 9})).__enter__()


def test_its_code_is_that_of_its_parts():
    """A table's row is measured again when a part has changed."""

    class Mine(il.Scorer):
        """Of a notebook."""

        name = "mine"

        def score(self, tokens):
            return tokens.hidden.norm(dim=2)

    class Other(il.Scorer):
        """Of a notebook, edited."""

        name = "mine"

        def score(self, tokens):
            return -tokens.hidden.norm(dim=2)

    Other.__qualname__ = Mine.__qualname__
    codes = [digest(il.compose(encoder="tome", llm=one)) for one in (Mine, Mine, Other, "fastv")]
    assert codes[0] == codes[1] and len(set(codes)) == 3


def test_a_graph_knows_it_again():
    """A name makes a new instance for every answer, which must not be captured anew."""
    keys = [strategy_key(make_strategy(name)) for name in ("tome+fastv", "tome+fastv", "tome+dart")]
    keys += [strategy_key(il.compose(llm={layer: "fastv"})) for layer in (1, 2)]
    keys += [strategy_key(il.compose(encoder="tome", llm="fastv", frames="each"))]
    assert keys[0] == keys[1] and len(set(keys)) == 5


@pytest.mark.slow
def test_it_is_a_row_of_a_table_like_any_other(tmp_path):
    lab = il.load()
    table = il.compare(lab, ["tome+fastv", COMPOSED["vscan + cdpruner"]], keep=0.4, limit=4, timing=False, out=tmp_path)
    assert table["strategy"].tolist() == ["none", "tome + fastv", "vscan + cdpruner"]
    assert (table["status"] == "ok").all() and table["kept"].tolist()[1:] == pytest.approx([0.4, 0.4], abs=0.01)
    assert (
        lab.ask(il.data_dir() / "samples" / "shapes.png", "What color is the circle?", "tome+fastv").strategy
        == "tome + fastv"
    )
