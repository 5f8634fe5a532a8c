"""Chapter 09: its checks name what is wrong, counts keep their sign, and the log says what the chapter shows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.checks import each_was_tried, says_what_is_wrong

import illava_lab as il
from illava_lab.course import better, checks_better
from illava_lab.course.checks_better import check_distinct, check_variant, check_weighed
from illava_lab.course.ledger import LESS, MORE, Ledger
from illava_lab.measuring.difference import keep_answers
from illava_lab.paths import clone_dir, data_dir

Tally = il.get_strategy("tally")


# --------------------------------------------------------------------------------------------- variants of Tally
class Mine(Tally):
    """As in the solution."""

    name = "mine"
    weight: float = 1.0

    def _distinct(self, tokens: il.Tokens) -> torch.Tensor:
        return super()._distinct(tokens) * self.weight


class Everywhere(Tally):
    """Another place to change: where the encoder merges."""

    name = "everywhere"
    part: float = 0.5

    def layers(self, stage: str, depth: int) -> list[int]:
        return list(range(round(depth * self.part))) if stage == "encoder" else super().layers(stage, depth)


class SameName(Mine):
    """Nobody could tell its rows."""

    name = "tally"


class NoSetting(Tally):
    """A value without a type is no setting."""

    name = "no-setting"
    weight = 0.5


class Shifted(Mine):
    """Two changes at once."""

    name = "shifted"
    weight: float = 0.5


class Unused(Tally):
    """A setting that nothing reads."""

    name = "unused"
    weight: float = 1.0


class Mixed(Mine):
    """Ranks of one image depend on the others."""

    name = "mixed"

    def _distinct(self, tokens: il.Tokens) -> torch.Tensor:
        own = super()._distinct(tokens)
        return own if self.weight == 1.0 else own.mean(dim=0, keepdim=True).expand_as(own)


def compared(*labels: str, task: str = "validation") -> pd.DataFrame:
    """A table in which the last of these labels fails the first picture."""
    asked = il.load_task(task).limited(40)
    right = {label: np.ones(len(asked), bool) for label in ("none keep 1", *(f"{name} FLOPs 0.35" for name in labels))}
    list(right.values())[-1][asked.samples["image_id"] == asked.samples["image_id"].iloc[0]] = False
    rows = [{"strategy": "none", "keep": 1.0, "flops": np.nan}, *({"strategy": name, "flops": 0.35} for name in labels)]
    table = pd.DataFrame(rows).assign(preset=None, schedule=None, status="ok")
    keep_answers(table, right, asked, seed=0)
    return table


# --------------------------------------------------------------------------------------------- what is common
def ranks(states: torch.Tensor, sizes: torch.Tensor, unit: bool = True, falling: bool = True) -> torch.Tensor:
    u = states / states.norm(dim=2, keepdim=True) if unit else states
    common = (u * (sizes[..., None] * u).sum(1, keepdim=True)).sum(2)
    return common.argsort(dim=1, descending=falling).argsort(dim=1) / states.shape[1]


def of_the_batch(states: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    u = states / states.norm(dim=2, keepdim=True)
    common = (u * (sizes[..., None] * u).sum((0, 1), keepdim=True)).sum(2)
    return common.argsort(dim=1, descending=True).argsort(dim=1) / states.shape[1]


TRIAL = Mine(weight=0.5)
# check, arguments, what the message must name (None: it is right)
ANSWERS: list[tuple[Callable[..., str], tuple, str | None]] = [
    (check_weighed, (lambda x, z: (x + z.log()).softmax(-1),), None),
    (check_weighed, (lambda x, z: x.exp() * z / (x.exp() * z).sum(1, keepdim=True),), None),
    (check_weighed, (lambda x, z: ...,), "nothing is returned yet"),
    (check_weighed, (lambda x, z: x.softmax(-1),), "attention without sizes"),
    (check_weighed, (lambda x, z: (x + z).softmax(-1),), "add its log"),
    (check_weighed, (lambda x, z: (x * z).softmax(-1),), "the logits were multiplied"),
    (check_weighed, (lambda x, z: (x + z.log()).softmax(0),), "your columns sum to 1"),
    (check_weighed, (lambda x, z: x.softmax(-1) * z,), "must sum to 1"),
    (check_weighed, (lambda x, z: (x - z.log()).softmax(-1),), "the shares are 0.13, 0.19, 0.69"),
    (check_distinct, (ranks,), None),
    (check_distinct, (lambda x, z: ...,), "nothing is returned yet"),
    (check_distinct, (lambda x, z: 4 * ranks(x, z),), "ranks over N"),
    (check_distinct, (lambda x, z: ranks(x, z, falling=False),), "the other way round"),
    (check_distinct, (lambda x, z: ranks(x, z, unit=False),), "token 1 is long"),
    (check_distinct, (of_the_batch,), "each image has a mean of its own"),
    (check_distinct, (lambda x, z: ranks(x, torch.ones_like(z)),), "token 1 stands for 40 patches"),
    (check_variant, (Mine, TRIAL, compared("tally", TRIAL.label)), None),
    (check_variant, (Everywhere, Everywhere(part=1.0), compared("tally", "everywhere(part=1.0)")), None),
    (check_variant, (..., ..., None), "a class like"),
    (check_variant, (il.get_strategy("tome"), TRIAL, None), "a subclass of Tally"),
    (check_variant, (SameName, SameName(weight=0.5), None), "still called 'tally'"),
    (check_variant, (NoSetting, NoSetting(), None), "it has no setting"),
    (check_variant, (Shifted, Shifted(), None), "two changes at once"),
    (check_variant, (Mine, 0.5, None), "trial must be an instance"),
    (check_variant, (Unused, Unused(weight=0.5), None), "is the setting used"),
    (check_variant, (Mixed, Mixed(weight=0.5), None), "is broken"),
    (check_variant, (Mine, TRIAL, None), "now compare it"),
    (check_variant, (Mine, TRIAL, compared("tally", TRIAL.label, task="test")), "not the validation questions"),
    (check_variant, (Mine, TRIAL, compared("tome", TRIAL.label)), "must have rows"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "given", "fault"), ANSWERS, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(ANSWERS)])  # fmt: skip
def test_checks_name_the_fault(check: Callable[..., str], given: tuple, fault: str | None) -> None:
    says_what_is_wrong(check(*given), fault)


def test_every_check_was_tried_with_three_wrong_answers_and_an_empty_one() -> None:
    each_was_tried(ANSWERS, checks_better)


def test_a_variant_is_told_apart_only_where_the_interval_says_so() -> None:
    assert "these questions cannot tell" in check_variant(Mine, TRIAL, compared("tally", TRIAL.label))


# --------------------------------------------------------------------------------------------- counts
def test_wrong_counts_keep_their_sign_and_other_questions_stay_out() -> None:
    assert better.signs(["3", "1", " 2 ", "5", "many"], ["2", "2", "2", "2", "2"]) == (1, 1, 2)
    assert [better.direction(*pair) for pair in ((4, 2), (4, 3), (0, 1), (0, 0))] == ["low", "both", "high", "both"]
    lab, task = il.load(), il.load_task("validation").limited(24)
    asked = int((task.samples["category"] == "count").sum())
    table = better.counts(lab, task, ["none", "random"], flops=0.5)
    assert table.sum(axis=1).tolist() == [asked, asked] and table.loc["none", "right"] == asked
    assert table.loc["random", "right"] < asked


# --------------------------------------------------------------------------------------------- what was tried
def test_the_log_of_the_chapter_is_that_of_the_research_and_every_variant_has_words() -> None:
    rows = better.tried(0.35)
    assert not [name for name in rows.index if name.startswith("variant")]
    assert rows.loc["sizes do not count in the LLM", "difference"] < 0
    clone = clone_dir()
    assert clone is not None
    log = pd.read_csv(clone / "results" / "research" / "log.csv").query("task == 'validation'")
    pd.testing.assert_frame_equal(pd.read_csv(data_dir() / "research.csv"), log.reset_index(drop=True))


def test_signals_are_measured_in_every_layer() -> None:
    table = better.signals()
    assert table.columns.tolist() == list(range(8)) and table.notna().all(axis=None)
    assert table.loc["unlike the mean state", 3] > 0.9 > table.loc["attention received", 3]


def test_the_ledger_tells_nothing_before_a_guess() -> None:
    rows = pd.DataFrame(
        {"difference": [-0.04, 0.01], "low": [-0.06, -0.01], "high": [-0.02, 0.03]}, ["sizes", "layers"]
    )
    ledger = Ledger(rows)
    assert "points" not in ledger._told.value
    assert ledger.guess(LESS) == (f"sizes: -4.0 points (95 % interval -6.0 to -2.0), {MORE} (you predicted: {LESS}).")
    assert "-4.0 points" in ledger._told.value and all(button.disabled for button in ledger._buttons)
    ledger.choose("layers")
    assert "points" not in ledger._told.value
    assert "as you predicted" in ledger.guess(LESS)
    with pytest.raises(il.LabError, match="choice must be one of"):
        ledger.guess("much")


def test_the_best_of_many_equal_ones_seems_better_than_it_is() -> None:
    one, twenty, asked_more = (
        better.lead_of_best(variants, questions, 0.96)["lead"]
        for variants, questions in ((1, 400), (20, 400), (20, 40_000))
    )
    assert abs(one) < 0.001 < asked_more < 0.003 < 0.015 < twenty
