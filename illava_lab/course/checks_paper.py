"""The automatic checks of chapter 07: the ramp of weights, the published counts, and a ledger of claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from illava_lab.course.exercises import exercise, need, number

SUPPORTED, NOT_SUPPORTED, NOT_CHECKED = VERDICTS = ("supported here", "not supported here", "not checked here")
LEDGER: dict[str, tuple[str, int | None, str]] = {  # claim -> verdict, section of the evidence, why
    "every benchmark in its README loses at most 0.5 points": (
        NOT_SUPPORTED,
        1,
        "most image benchmarks of that README lose more than 0.5 points",
    ),
    "models of 7B to 34B lose 0.2 to 0.5 %": (
        NOT_CHECKED,
        None,
        "no model of that size answered anything here, and a small model's loss neither confirms nor refutes it",
    ),
    "recycling keeps what dropping loses": (
        NOT_SUPPORTED,
        2,
        "no pair of section 2 shows that iLLaVA's merging is better than dropping",
    ),
    "the code for Qwen ranks by attention": (
        NOT_SUPPORTED,
        3,
        "it computes a log-sum-exp, and ranks other tokens first",
    ),
    "without the encoder this model's work cannot be halved": (
        SUPPORTED,
        4,
        "LLM only, from its layer 2 on, stays above 0.7 of the FLOPs whatever it keeps",
    ),
    "about twice the throughput of a 7B model": (
        NOT_CHECKED,
        None,
        "hardware and batch size are not stated, and FLOPs are a bound, not a measurement",
    ),
}


@exercise
def check_own_share(function: Callable[[int], float]) -> str:
    """R tokens merged into a target with the published code's weights -> the weight that the target keeps of itself."""
    got = number(function(0))
    need(
        abs(got - 1) < 1e-9,
        f"with nothing merged (R = 0) the target is itself: 1; yours gives {got:.4g} (is the sum of the weights "
        "(R+1)(R+2)/2?)",
    )
    got = number(function(3))
    need(abs(got - 0.25) > 1e-9, "1/4 would be the plain mean of four tokens; the weights are a ramp")
    need(
        abs(got - 0.4) > 1e-9,
        "0.4 is the share of the *least* attended token, which weighs most; the target weighs least",
    )
    need(
        abs(got - 0.1) < 1e-9,
        f"for R = 3 the weights are 4, 3, 2, 1 of 10, and the target has the 1: 0.1; yours gives {got:.4g}",
    )
    return f"for R = 92 the target keeps {100 * number(function(92)):.3f} % of itself."


@exercise
def check_published_counts(function: Callable[[int, int, int, float], Any]) -> str:
    """Patches, layers, removed in each, keep in the LLM -> (tokens that leave the encoder, that the LLM keeps)."""
    got = function(729, 4, 92, 0.7)
    need(
        got is not None and got is not ...,
        "nothing is returned yet; a pair (after the encoder, after the LLM's layer) is expected",
    )
    need(
        isinstance(got, tuple) and len(got) == 2,
        f"a pair (after the encoder, after the LLM's layer) is expected, got {got!r}",
    )
    encoder, llm = got
    need(encoder != 365, "365 follows from the README's 364; its command removes 92 in each of 4 layers, which is 368")
    need(encoder == 361, f"729 - 4 * 92 = 361 = 19 * 19 leave the encoder; yours are {encoder!r}")
    need(llm != 510 and llm != 511, "the LLM keeps 0.7 of what *reaches* it, which is not 729 any more")
    need(llm != 252, "the code rounds what it *removes*: 361 - round(361 * 0.3) = 253, not int(361 * 0.7)")
    need(llm == 253, f"361 - round(361 * 0.3) = 253 are left in the LLM; yours are {llm!r}")
    need(
        function(100, 2, 10, 0.5) == (80, 40),
        f"100 patches, 2 layers, 10 each, half: (80, 40), yours gives {function(100, 2, 10, 0.5)!r}",
    )
    return "361 is a square, which the code's later pooling needs; 364 removed would not have been."


@exercise
def check_ledger(ledger: Mapping[str, tuple[str, int | None]]) -> str:
    """Claim -> (one of `VERDICTS`, the section whose evidence decides it or None), for every claim of the chapter."""
    need(isinstance(ledger, Mapping), f"a dict from claim to a pair is expected, got {ledger!r}")
    for claim, (right, section, why) in LEDGER.items():
        pair = ledger.get(claim)
        need(
            claim in ledger and pair is not ... and pair != (..., ...),
            f"“{claim}” has no verdict yet",
        )
        need(
            isinstance(pair, tuple) and len(pair) == 2,
            f"“{claim}”: a pair (verdict, section) is expected, got {pair!r}",
        )
        assert pair is not None
        got, where = pair
        need(got in VERDICTS, f"“{claim}”: one of {', '.join(VERDICTS)} is expected, got {got!r}")
        need(got == right, f"“{claim}” is {right}: {why}; yours says {got}")
        need(
            where == section,
            f"“{claim}” is {right}, but the evidence is not in section {where}: {why}"
            if section is not None
            else f"“{claim}” was not checked, so no section decides it: None is expected, got {where!r}",
        )
    return "“here” is part of each verdict: one small model, on a CPU."
