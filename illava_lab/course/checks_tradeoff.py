"""The checks of chapter 04: what an interval allows to say, a whole answer's time, and where reduction pays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from illava_lab.course.exercises import exercise, need, number

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
