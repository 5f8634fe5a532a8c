"""One vocabulary: every verb takes a strategy and a budget in the same words, and refuses what contradicts itself."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from conftest import random_llava

import illava_lab as il
from illava_lab.measuring.rows import wanted
from illava_lab.schedules.budget import DEFAULT_KEEP, Budget, choose

WORDS = ["strategy", "keep", "flops", "preset", "schedule"]
VERBS = [il.Lab.ask, il.chat, il.converse, il.compare, il.bench, il.fidelity]
HALF = il.Schedule(llm={2: 0.5})


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(scope="module")
def sample() -> tuple:
    task = il.load_task("test")
    return task.image(task.samples["image_id"][0]), task.samples["question"][0]


def test_every_verb_takes_the_same_words_in_the_same_order() -> None:
    for verb in VERBS:
        parameters = inspect.signature(verb).parameters
        assert [name for name in parameters if name in WORDS] == WORDS, verb
        first = list(parameters).index("strategy")
        assert list(parameters)[first : first + len(WORDS)] == WORDS, verb
        for name in WORDS:
            positional = parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            assert parameters[name].default is None and positional == (name in WORDS[:2]), (verb, name)


@pytest.mark.parametrize(
    ("asked", "runs", "budget"),
    [
        ({}, "none", "keep 1"),
        ({"strategy": "none"}, "none", "keep 1"),
        ({"strategy": "none", "keep": 1.0}, "none", "keep 1"),
        ({"keep": 1}, "none", "keep 1"),
        ({"strategy": "illava"}, "illava", "keep 0.5 (the default)"),
        ({"strategy": "illava", "keep": np.float32(0.25)}, "illava", "keep 0.25"),
        ({"strategy": "illava", "keep": torch.tensor(0.25)}, "illava", "keep 0.25"),
        ({"strategy": "illava", "flops": 0.7}, "illava", "FLOPs 0.7"),
        ({"strategy": "fastv", "schedule": HALF}, "fastv", "schedule llm 2: 0.5"),
        ({"preset": "illava-image"}, "illava", "preset illava-image"),
        ({"preset": "illava-qwen2-vl"}, "illava(score='lse')", "preset illava-qwen2-vl"),
        ({"strategy": "illava", "preset": "illava-qwen2-vl"}, "illava(score='lse')", "preset illava-qwen2-vl"),
    ],
)
def test_a_run_is_what_was_asked_for_and_says_so(
    lab: il.Lab, sample: tuple, asked: dict, runs: str, budget: str
) -> None:
    answer = lab.ask(*sample, **asked, max_new_tokens=2)
    assert (answer.strategy, answer.budget) == (runs, budget)
    assert bool(answer.trace.steps) == (budget != "keep 1")
    with il.chat(lab, sample[0], **asked) as talk:
        said = talk.say(sample[1], max_new_tokens=2)
    assert (said.strategy, said.budget) == (runs, budget)
    assert [(s.stage, s.layer, s.after) for s in said.trace.steps] == [
        (s.stage, s.layer, s.after) for s in answer.trace.steps
    ] or "flops" in asked


def test_the_default_budget_is_the_stated_one(lab: il.Lab, sample: tuple) -> None:
    left = lab.ask(*sample, "stride").trace
    assert len(left.sources(0).anchor) == round(DEFAULT_KEEP * 196)


CONTRADICTIONS = [
    ({"keep": 0.5}, "keep 0.5 cannot be met, because no strategy is named"),
    ({"flops": 0.5}, "FLOPs 0.5 cannot be met, because no strategy is named"),
    ({"strategy": "none", "keep": 0.5}, "the strategy 'none' keeps every token"),
    ({"strategy": "none", "schedule": HALF}, "the strategy 'none' keeps every token"),
    ({"schedule": HALF}, "because no strategy is named"),
    ({"strategy": "illava", "keep": 0.5, "schedule": HALF}, "give one budget .* got keep=0.5, schedule=Schedule"),
    ({"strategy": "illava", "keep": 0.5, "flops": 0.5}, "give one budget .* got keep=0.5, flops=0.5"),
    ({"strategy": "illava", "keep": 0.5, "preset": "illava-image"}, "give one budget"),
    ({"strategy": "fastv", "preset": "illava-image"}, "the preset 'illava-image' runs illava, not fastv"),
    (
        {"strategy": il.get_strategy("illava")(), "preset": "illava-qwen2-vl"},
        r"the preset 'illava-qwen2-vl' runs illava\(score='lse'\), not ILLaVA",
    ),
    ({"preset": "ilava-image"}, "unknown preset 'ilava-image'; did you mean illava-image"),
    ({"strategy": "illava", "keep": 1.5}, r"keep must be a fraction in \(0, 1\], got 1.5"),
    ({"strategy": "illava", "keep": True}, r"keep must be a fraction in \(0, 1\], got True"),
    ({"strategy": "illava", "schedule": {2: 0.5}}, "schedule must be a Schedule, got {2: 0.5}"),
]


@pytest.mark.parametrize(("asked", "says"), CONTRADICTIONS)
def test_contradictions_are_refused_before_any_work(
    lab: il.Lab, sample: tuple, monkeypatch: pytest.MonkeyPatch, asked: dict, says: str
) -> None:
    monkeypatch.setattr(type(lab.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    task = il.load_task("test").limited(4)
    with pytest.raises(il.LabError, match=says):
        lab.ask(*sample, **asked)
    with pytest.raises(il.LabError, match=says), il.chat(lab, sample[0], **asked):
        pass
    with pytest.raises(il.LabError, match=says):
        il.converse(lab, task, **asked)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "strategy must name at least one strategy, or preset at least one preset"),
        ({"keep": 0.5}, "strategy must name at least one strategy"),
        ({"strategy": "none", "keep": [0.5]}, "keep 0.5 needs a strategy that reduces"),
        ({"preset": "illava-image", "keep": 0.5}, "keep 0.5 needs a strategy that reduces"),
        ({"strategy": ["illava", "illava"]}, "strategy holds one twice"),
        ({"strategy": "illava", "keep": [0.5, 0.5]}, "keep holds one twice"),
        ({"strategy": "illava", "keep": []}, "keep must hold at least one"),
        ({"strategy": "illava", "keep": [0.5, 2]}, r"keep must be a fraction in \(0, 1\], got 2"),
        ({"strategy": "illava", "schedule": [HALF, HALF]}, "schedule holds one twice"),
        ({"preset": ["illava-image", "ilava"]}, "unknown preset 'ilava'"),
    ],
)
def test_tables_refuse_contradictions_before_any_work(
    lab: il.Lab, sample: tuple, monkeypatch: pytest.MonkeyPatch, asked: dict, says: str
) -> None:
    monkeypatch.setattr(type(lab.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    for verb in (
        lambda: il.compare(lab, limit=4, progress=False, **asked),
        lambda: il.bench(lab, progress=False, **asked),
        lambda: il.fidelity(lab, [sample[0]], [sample[1]], progress=False, **asked),
    ):
        with pytest.raises(il.LabError, match=says):
            verb()


def test_every_strategy_gets_every_budget_and_presets_come_last(lab: il.Lab) -> None:
    asked = wanted(["none", "fastv", "tome"], 0.5, [0.9], "illava-qwen2-vl", HALF, default=(), seed=0)
    labels = [row.label for row in asked.rows(lab.model, text_tokens=10)]
    assert labels == [
        *(
            f"{name} {budget}"
            for name in ("fastv", "tome")
            for budget in ("keep 0.5", "FLOPs 0.9", "schedule llm 2: 0.5")
        ),
        "illava(score='lse') preset illava-qwen2-vl",
    ]
    last = asked.rows(lab.model, text_tokens=10)[-1]
    assert last.strategy.score == "lse" and last.schedule == il.Schedule.preset("illava-qwen2-vl", lab.model)


def test_a_preset_runs_the_settings_that_it_was_published_with() -> None:
    """The other score, on the same layers, leaves other tokens: what ran is not the strategy's default."""
    model = random_llava("clip-llama")
    strategy, budget = choose(None, preset="illava-qwen2-vl")
    schedule = budget.plan(strategy, model)
    assert strategy == il.get_strategy("illava")(score="lse") and strategy != il.get_strategy("illava")()
    assert il.presets()["illava-qwen2-vl"].settings == {"score": "lse"}
    assert schedule == il.Schedule.preset("illava-qwen2-vl", model)
    for name, preset in il.presets().items():
        own = il.get_strategy(preset.strategy)(**preset.settings)
        assert own.label == preset.label and set(own.stages) >= {s for s in ("encoder", "llm") if getattr(preset, s)}
        assert choose(None, preset=name)[0] == own


def test_a_budget_is_one_of_four() -> None:
    for nothing in ({}, {"default": True}):
        with pytest.raises(il.LabError, match="give one budget of keep, flops, preset and schedule; got none of them"):
            Budget(**nothing)
    assert Budget(flops=1).keeps_everything and Budget(schedule=il.Schedule()).keeps_everything
    assert not Budget(preset="illava-image").keeps_everything


def test_a_schedule_cannot_be_changed_and_can_be_a_key() -> None:
    plan = il.Schedule(encoder={3: 0.8}, llm={2: 8})
    assert {plan: 1}[il.Schedule(llm={2: 8}, encoder={3: 0.8})] == 1 and plan != il.Schedule()
    with pytest.raises(TypeError):
        plan.encoder[3] = 0.1
    assert eval(repr(plan), {"Schedule": il.Schedule}) == plan
    with pytest.raises(il.LabError, match="schedule llm must map layers to what they keep"):
        il.Schedule(llm=[0.5])
