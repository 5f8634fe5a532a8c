"""Chapter 09: its checks name what is wrong, counts keep their sign, and the log says what the chapter shows."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest
import torch
from helpers.checks import each_was_tried, says_what_is_wrong

import illava_lab as il
from illava_lab.course import better, checks_better
from illava_lab.course.checks_better import check_crowd, check_distinct, check_weighed
from illava_lab.course.ledger import LESS, MORE, Ledger
from illava_lab.paths import clone_dir, data_dir


# --------------------------------------------------------------------------------------------- a crowd
def crowd(first: float = -40, last: float = 40, things: int = 12, rest: torch.Tensor | None = None) -> tuple:
    """Things on a fan of directions (degrees), then background, of one direction across the fan."""
    angle = torch.linspace(first, last, things).deg2rad()
    fan = torch.stack([angle.cos(), angle.sin(), 0 * angle], dim=1)
    rest = torch.tensor([[0.0, 0.0, 1.0]]).expand(16 - things, 3) if rest is None else rest
    return torch.cat([fan, rest]), torch.arange(16) < things


def on_places(places: list[int], states: torch.Tensor, thing: torch.Tensor) -> tuple:
    return states[places], thing[places]


def upside_down() -> tuple:
    states, thing = crowd()
    return states, ~thing


def odd_things() -> tuple:
    """Seven things on odd places: ToMe and Tally move even places only, and those are background."""
    states = torch.zeros(16, 12)
    states[0::2] = torch.cat([torch.zeros(8, 3), torch.eye(8), torch.full((8, 1), 0.5)], dim=1)
    states[1::2, :3] = crowd(-20, 20, 7)[0][:8]
    states[15] = torch.eye(12)[11]  # the only background that the others can join
    return states, (torch.arange(16) % 2 == 1) & (torch.arange(16) < 15)


# --------------------------------------------------------------------------------------------- what is common
def ranks(states: torch.Tensor, sizes: torch.Tensor, unit: bool = True, falling: bool = True) -> torch.Tensor:
    u = states / states.norm(dim=2, keepdim=True) if unit else states
    common = (u * (sizes[..., None] * u).sum(1, keepdim=True)).sum(2)
    return common.argsort(dim=1, descending=falling).argsort(dim=1) / states.shape[1]


def of_the_batch(states: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    u = states / states.norm(dim=2, keepdim=True)
    common = (u * (sizes[..., None] * u).sum((0, 1), keepdim=True)).sum(2)
    return common.argsort(dim=1, descending=True).argsort(dim=1) / states.shape[1]


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
    (check_crowd, (crowd,), None),
    (check_crowd, (lambda: crowd(-40, 40, 9),), None),
    (check_crowd, (lambda: on_places([*range(12, 16), *range(12)], *crowd()),), None),
    (check_crowd, (lambda: ...,), "nothing is returned yet"),
    (check_crowd, (lambda: crowd()[0],), "two tensors"),
    (check_crowd, (lambda: (crowd()[0][:15], crowd()[1]),), "the shapes must be"),
    (check_crowd, (lambda: (crowd()[0], crowd()[1].float()),), "True and False"),
    (check_crowd, (lambda: crowd(things=14),), "four things and four of background"),
    (check_crowd, (lambda: (0 * crowd()[0], crowd()[1]),), "a state is zero"),
    (check_crowd, (lambda: crowd(0, 0),), "the same vector"),
    (check_crowd, (lambda: crowd(-90, 180, 4),), "step 1 takes your background for the common"),
    (check_crowd, (lambda: crowd(-170, 160),), "step 1 takes your background for the common"),
    (check_crowd, (upside_down,), "the same vector"),
    (check_crowd, (lambda: crowd(rest=torch.tensor([[0, 1, 0.5], [0, -1, 0.5], [-1, 0, 0.5], [0, 0, 1.0]])),), "ToMe, too"),
    (check_crowd, (lambda: on_places([12, 0, 13, 1, 14, 2, 15, *range(3, 12)], *crowd()),), "on places of both kinds"),
    (check_crowd, (odd_things,), "apart as well"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "given", "fault"), ANSWERS, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(ANSWERS)])  # fmt: skip
def test_checks_name_the_fault(check: Callable[..., str], given: tuple, fault: str | None) -> None:
    says_what_is_wrong(check(*given), fault)


def test_every_check_was_tried_with_three_wrong_answers_and_an_empty_one() -> None:
    each_was_tried(ANSWERS, checks_better)


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


def test_what_the_test_said_is_in_the_results_and_a_lead_is_over_the_best_other() -> None:
    table = better.asked_once(0.5)
    assert list(table.index) == ["test", "conversation", "fine", "multi-image", "video"]
    assert table.loc["video", "best other"] == "downsample" and table.loc["video", "lead"] < 0
    assert (table["accuracy"] >= table[["downsample", "random"]].max(axis=1)).all()
    clone = clone_dir()
    assert clone is not None
    lead = pd.read_csv(clone / "results" / "equal_flops" / "lead.csv").query("flops == 0.5").set_index("task")
    assert table["lead"].tolist() == pytest.approx((100 * lead["lead"]).reindex(table.index).tolist())
