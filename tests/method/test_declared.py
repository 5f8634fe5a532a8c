"""A setting may decide what a strategy says of itself: properties where the base class has plain attributes."""

from __future__ import annotations

import pytest
import torch

import illava_lab as il
from illava_lab.method import registry
from illava_lab.method.declared import declared
from illava_lab.method.registry import make_strategy
from illava_lab.testing.subject import Subject

PAPER = il.Paper("A paper", "2401.00001", 2024)


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    il.strategies()
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.fixture
def decides() -> type[il.Strategy]:
    @il.register
    class Decides(il.Strategy):
        """Keep the largest norms, and with `merges` add the first dropped token to the last slot."""

        name = "decides"
        merges: bool = False

        @property
        def kind(self):
            return "merge" if self.merges else "prune"

        @property
        def stages(self):
            return ("encoder",) if self.merges else ("encoder", "llm")

        @property
        def averages(self):
            return not self.merges

        @property
        def memory(self):
            return "quadratic" if self.merges else "linear"

        @property
        def proportional_attention(self):
            return self.merges

        @property
        def smallest_keep(self):
            return 0.75 if self.merges else 0.0

        @property
        def home(self):
            return ("encoder",) if self.merges else ("llm",)

        @property
        def paper(self):
            return PAPER if self.merges else None

        def map(self, tokens, keep):
            order = il.ranking(tokens.hidden.float().norm(dim=2), tokens)
            anchor = order[:, :keep].sort(dim=1).values
            if not self.merges or keep == tokens.count or not tokens.room(keep):
                return il.TokenMap.keep(anchor, tokens.count)
            slot = (anchor < order[:, keep - 1 : keep]).sum(dim=1, keepdim=True)
            one = torch.ones(slot.shape, device=slot.device)
            return il.TokenMap(anchor, tokens.count, None, slot, order[:, keep : keep + 1], one)

    return Decides


def test_properties_are_checked_of_every_instance(decides):
    assert il.check_strategy("decides").passed
    report = il.check_strategy(decides(merges=True))
    # It says that it does not average, that half is too few, and that it is not for the LLM: nobody asked for these.
    (sums,) = [result for result in report.results if result.promise == "rows_sum_to_one"]
    assert report.passed and sums.outcome == "not applicable"
    assert {case.stage for case in Subject(decides(merges=True)).cases(9)} == {"encoder"}
    assert all(case.keep - case.protected >= 7 for case in Subject(decides(merges=True)).cases(9))


def test_lists_see_what_default_settings_give(decides):
    said = {name: declared(decides, name) for name in ("kind", "stages", "paper", "memory")}
    assert said == {"kind": "prune", "stages": ("encoder", "llm"), "paper": None, "memory": "linear"}
    assert declared(il.get_strategy("fastv"), "stages") == ("llm",) == il.get_strategy("fastv").stages


def test_a_model_and_a_budget_see_the_instance(decides):
    lab = il.load()
    model, both = lab.model, il.Schedule(encoder={1: 0.8}, llm={1: 0.5})
    with (
        pytest.raises(il.LabError, match="'decides' serves encoder; the schedule asks for the llm stage"),
        il.attach(model, decides(merges=True), both),
    ):
        pass
    task = il.load_task("test").limited(1)
    picture, question = task.image(task.samples.iloc[0]["image_id"]), task.samples.iloc[0]["question"]
    with il.attach(model, decides(merges=True), il.Schedule(encoder={1: 0.8})) as trace:
        lab.answer([picture], [question])
    (step,) = trace.steps
    assert (step.stage, step.map.weight is None) == ("encoder", False) and step.after < step.before
    with il.attach(model, "decides", il.Schedule(llm={1: 0.5})) as trace:
        lab.answer([picture], [question])
    assert [step.stage for step in trace.steps] == ["llm"]
    where = {merges: il.Schedule.for_budget(decides(merges), model, keep=0.8) for merges in (False, True)}
    assert where[True].encoder and not where[True].llm and where[False].llm and not where[False].encoder


def test_a_setting_without_a_default_leaves_it_open():
    @il.register
    class Open(il.Scorer):
        """Nobody knows its kind before it is made."""

        name = "open"
        merges: bool

        @property
        def kind(self):
            return "merge" if self.merges else "prune"

        def score(self, tokens):
            return tokens.hidden.norm(dim=2)

    assert il.get_strategy("open") is Open and declared(Open, "kind") is None
    assert declared(Open, "kind", unknown="?") == "?" and Open(merges=True).kind == "merge"
    assert il.check_strategy(Open(merges=False)).passed
    with pytest.raises(il.LabError, match=r"'open' cannot be made without settings .*'merges'.*; give every setting"):
        make_strategy("open")


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"kind": property(lambda self: "squash")}, "Odd.kind must be one of .* got 'squash'"),
        ({"stages": property(lambda self: "llm")}, "Odd.stages must be taken from .* got 'llm'"),
        ({"kind": property(lambda self: self.missing)}, "Odd.kind cannot be read with the default settings: .*missing"),
        ({"name": property(lambda self: "odd")}, "Odd needs a name"),
    ],
)
def test_what_a_property_says_by_default_is_looked_at(attributes, message):
    with pytest.raises(il.LabError, match=message):
        il.register(type("Odd", (il.Scorer,), {"name": "odd", **attributes}))
    assert "odd" not in il.strategies()


@pytest.mark.parametrize("base", [il.Strategy, il.Scorer, il.Scorer()])
def test_a_base_class_is_no_strategy(base):
    with pytest.raises(il.LabError, match="is a base class and does nothing by itself; strategy must be a subclass"):
        make_strategy(base)
