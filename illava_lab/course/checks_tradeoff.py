"""The checks of chapter 04: what an interval says, a whole answer's time, where reduction pays, and who leads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from illava_lab.course.exercises import exercise, need, number
from illava_lab.measuring.difference import keep_answers
from illava_lab.measuring.task_files import load_task

VERDICTS = ("worse", "better", "cannot tell")


@exercise
def check_verdict(function: Callable[[float, float], str]) -> str:
    """Ends of the 95 % interval of a difference to the bare model, in points -> one of `VERDICTS`."""
    cases = {
        (-7.0, -3.0): ("worse", "the whole interval lies below 0"),
        (2.0, 6.0): ("better", "the whole interval lies above 0"),
        (-7.0, 1.0): ("cannot tell", "the interval holds 0, however much of it is below"),
        (-1.0, 7.0): ("cannot tell", "the interval holds 0, however much of it is above"),
        (0.0, 0.0): ("cannot tell", "no answer changed; 0 is in the interval, and more questions may change that"),
    }
    for (low, high), (right, why) in cases.items():
        got = function(low, high)
        need(got is not None and got is not ..., f"nothing is returned yet; one of {', '.join(VERDICTS)} is expected")
        need(got in VERDICTS, f"one of {', '.join(VERDICTS)} is expected, got {got!r}")
        need(got == right, f"from {low:+.1f} to {high:+.1f}: {why}, so {right!r}; yours says {got!r}")
    return "an interval that holds 0 says neither “loses” nor “loses nothing”."


@exercise
def check_answer_time(function: Callable[[float, float, int, float], float]) -> str:
    """Prefill seconds, seconds per new token, new tokens, prefill ratio -> the answer's share of the bare time."""
    got = number(function(1.0, 0.01, 0, 0.5))
    need(
        abs(got - 0.5) < 1e-9,
        f"without new tokens only the prefill is left, which takes 0.5 of its time; yours gives {got:.4g}",
    )
    got = number(function(1.0, 0.01, 100, 0.5))
    need(
        got <= 1,
        f"the prefill got shorter, so the whole must not get longer than before; yours gives {got:.4g} (a share, not "
        "a speed-up)",
    )
    need(
        abs(got - 0.5) > 1e-9,
        "100 new tokens take as long as the prefill did, and decoding does not get faster here: more than 0.5 is left",
    )
    need(abs(got - 0.25) > 1e-9, "the ratio belongs to the prefill only; the seconds of decoding stay as they are")
    need(abs(got - 0.75) < 1e-9, f"(1 × 0.5 + 100 × 0.01) / (1 + 100 × 0.01) = 0.75; yours gives {got:.4g}")
    return "the longer the answer, the less a shorter prefill is worth."


@exercise
def check_crossover(function: Callable[[Sequence[float], Sequence[float]], float | None]) -> str:
    """FLOPs shares (falling) and time ratios -> the largest from which on all smaller ones are faster, or None."""
    got = function([0.9, 0.7, 0.5, 0.3], [1.2, 1.05, 0.8, 0.6])
    need(got is not ..., "nothing is returned yet; a share of the FLOPs, or None, is expected")
    need(got is not None, "at 0.5 and at 0.3 the time is below 1: there is a crossover")
    need(got != 0.8, "that is a time; the *share of the FLOPs* at which it falls below 1 is asked for")
    need(
        got != 0.3,
        "0.3 is faster still, but 0.5 is faster than the bare model already: the largest such share is asked for",
    )
    need(
        got == 0.5,
        f"0.7 of the FLOPs still takes 1.05 of the time, 0.5 takes 0.8: the crossover is 0.5, yours is {got!r}",
    )
    never: Any = function([0.9, 0.5], [1.3, 1.0])
    need(never is None, f"1.0 is not faster: here reduction never pays, so None is expected, yours is {never!r}")
    noisy = function([0.9, 0.7, 0.5, 0.3], [0.98, 1.04, 0.8, 0.6])
    need(
        noisy == 0.5,
        f"0.9 looks faster once, but 0.7 is slower again: it must hold from there on, so 0.5; yours is {noisy!r}",
    )
    return "fewer FLOPs pay only where they outweigh what choosing and merging cost."


@exercise
def check_leaders(function: Callable[[pd.DataFrame, float], set[str]]) -> str:
    """A table of `compare`, a share of the FLOPs -> the strategies that the best cannot be told apart from."""
    table = _contest()
    got = function(table, 0.5)
    need(got is not None and got is not ..., "nothing is returned yet; a set of strategies is expected")
    need(isinstance(got, set), f"a set of names is expected, such as {{'tome', 'random'}}, got {type(got).__name__}")
    need("none" not in got, "the bare model is no strategy: it stays out")
    need("broken" not in got, "'broken' failed (its status is not ok): it stays out")
    need("first" in got, f"the best belongs to its group: 'first' has the highest accuracy at 0.5; yours has {got!r}")
    need("cheap" not in got, "'cheap' was measured at 0.7 only: rows of other budgets stay out")
    need(
        "steady" not in got,
        "'steady' loses what 'first' loses, and more: the pair's interval lies below 0, though both intervals against "
        "the bare model overlap; use il.difference between the two",
    )
    need(
        "other" in got,
        "'other' has the same accuracy as 'steady', but on other questions than 'first': the pair's interval holds 0, "
        "so it cannot be told apart",
    )
    need(got == {"first", "other"}, f"{{'first', 'other'}} is expected, yours is {got!r}")
    need(function(table, 0.7) == {"first", "cheap"}, "at 0.7 'first' and 'cheap' answer the same questions right")
    return "equal accuracies, and one is told apart: the pair decides, not the table."


def _contest() -> pd.DataFrame:
    """160 questions about 40 images: 'steady' and 'other' are equally good, and only one is told apart from 'first'."""
    task = load_task("test").limited(160)
    image, turn = (
        np.unique(task.samples["image_id"], return_inverse=True)[1],
        task.samples.groupby("image_id").cumcount(),
    )
    first = ~((image % 5 == 0) & (turn.to_numpy() < 2))
    steady = first & ~((image % 5 == 1) & (turn.to_numpy() < 1))
    rows = [("none", 1.0, np.nan, np.ones(len(task), bool))]
    # As many wrong as 'steady' has, all of them where 'first' is right.
    wrong = np.flatnonzero(first & (image % 5 == 2) | first & (image % 5 == 3))[: int((~steady).sum())]
    other = np.ones(len(task), bool)
    other[wrong] = False
    for share in (0.7, 0.5):
        rows += [("first", np.nan, share, first)]
        rows += [("cheap", np.nan, share, first)] if share == 0.7 else []
        rows += [("steady", np.nan, share, steady), ("other", np.nan, share, other)] if share == 0.5 else []
    made = pd.DataFrame(
        [
            {"strategy": name, "keep": keep, "flops": flops, "accuracy": right.mean(), "status": "ok"}
            for name, keep, flops, right in rows
        ]
        + [{"strategy": "broken", "keep": np.nan, "flops": 0.5, "accuracy": np.nan, "status": "it cannot"}]
    )
    label = {
        row: f"{name} " + (f"keep {keep:g}" if name == "none" else f"FLOPs {flops:g}")
        for row, (name, keep, flops, _) in enumerate(rows)
    }
    keep_answers(made, {label[row]: right for row, (*_, right) in enumerate(rows)}, task, seed=0)
    return made
