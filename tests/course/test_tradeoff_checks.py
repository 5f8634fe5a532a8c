"""The checks of chapters 04 and 07 name what is wrong with typical wrong answers, and accept right ones."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers.checks import each_was_tried, says_what_is_wrong

import illava_lab as il
from illava_lab.course import checks_paper, checks_tradeoff
from illava_lab.course.checks_paper import LEDGER, NOT_CHECKED, check_ledger, check_own_share, check_published_counts
from illava_lab.course.checks_tradeoff import check_answer_time, check_crossover, check_leaders, check_verdict


def verdict(low: float, high: float) -> str:
    return "worse" if high < 0 else "better" if low > 0 else "cannot tell"


def crossover(shares: list[float], ratios: list[float]) -> float | None:
    slow = [i for i, r in enumerate(ratios) if r >= 1]
    first = slow[-1] + 1 if slow else 0
    return shares[first] if first < len(shares) else None


def answer_time(p: float, d: float, n: int, r: float) -> float:
    return (p * r + n * d) / (p + n * d)


def own(table: pd.DataFrame, flops: float) -> pd.DataFrame:
    return table[(table["flops"] == flops) & (table["status"] == "ok")].sort_values("accuracy", ascending=False)


def leaders(table: pd.DataFrame, flops: float) -> set[str]:
    names = list(own(table, flops)["strategy"])
    return {
        name
        for name in names
        if il.difference(table, f"{name} FLOPs {flops:g}", f"{names[0]} FLOPs {flops:g}").high >= 0
    }


def near(table: pd.DataFrame, flops: float) -> set[str]:
    """Whoever is within a few points of the best: overlapping intervals say little else."""
    rows = own(table, flops)
    return set(rows.loc[rows["accuracy"] > rows["accuracy"].max() - 0.06, "strategy"])


ledger = {claim: (right, section) for claim, (right, section, _) in LEDGER.items()}
first, second, third, *_ = LEDGER

# check, answer, what the message must name (None: it is right)
ANSWERS = [
    (check_verdict, verdict, None),
    (check_verdict, lambda low, high: ..., "nothing is returned yet"),
    (check_verdict, lambda low, high: "worse" if low < 0 else "better", "the interval holds 0"),
    (check_verdict, lambda low, high: "better" if high < 0 else "worse", "lies below 0"),
    (check_verdict, lambda low, high: "worse" if high <= 0 else verdict(low, high), "no answer changed"),
    (check_verdict, lambda low, high: "loses", "one of worse, better"),
    (check_answer_time, answer_time, None),
    (check_answer_time, lambda p, d, n, r: ..., "nothing is returned yet"),
    (check_answer_time, lambda p, d, n, r: r, "100 new tokens"),
    (check_answer_time, lambda p, d, n, r: r * p / (p + n * d), "seconds of decoding stay"),
    (check_answer_time, lambda p, d, n, r: 1 / answer_time(p, d, n, r), "takes 0.5 of its time"),
    (check_answer_time, lambda p, d, n, r: p * r + n * d, "must not get longer"),
    (check_crossover, crossover, None),
    (check_crossover, lambda s, r: ..., "nothing is returned yet"),
    (check_crossover, lambda s, r: next((a for a, b in zip(s, r, strict=True) if b < 1), None), "slower again"),
    (check_crossover, lambda s, r: next((a for a, b in zip(s, r, strict=True) if b <= 1), None), "never pays"),
    (check_crossover, lambda s, r: s[-1], "largest such share"),
    (check_crossover, lambda s, r: next(b for b in r if b < 1), "share of the FLOPs"),
    (check_leaders, leaders, None),
    (check_leaders, lambda table, flops: ..., "nothing is returned yet"),
    (check_leaders, lambda table, flops: list(leaders(table, flops)), "a set of names"),
    (check_leaders, near, "use il.difference between the two"),
    (check_leaders, lambda table, flops: {own(table, flops)["strategy"].iloc[0]}, "the pair's interval holds 0"),
    (check_leaders, lambda table, flops: leaders(table, flops) - {"first"}, "the best belongs to its group"),
    (check_leaders, lambda table, flops: set(table["strategy"]), "the bare model is no strategy"),
    (check_leaders, lambda table, flops: {"first", "other"} | ({"broken"} if flops == 0.5 else set()), "status is not ok"),
    (check_leaders, lambda table, flops: {"first", "other"}, "at 0.7"),
    (check_own_share, lambda R: 2 / ((R + 1) * (R + 2)), None),
    (check_own_share, lambda R: ..., "nothing is returned yet"),
    (check_own_share, lambda R: 1 / (R + 1), "plain mean"),
    (check_own_share, lambda R: 2 / (R + 2), "least* attended"),
    (check_own_share, lambda R: 1 / ((R + 1) * (R + 2)), "with nothing merged"),
    (check_published_counts, lambda n, k, r, keep: (n - k * r, n - k * r - round((n - k * r) * (1 - keep))), None),
    (check_published_counts, lambda n, k, r, keep: ..., "nothing is returned yet"),
    (check_published_counts, lambda n, k, r, keep: (365, 255), "README's 364"),
    (check_published_counts, lambda n, k, r, keep: (n - k * r, int((n - k * r) * keep)), "rounds what it *removes*"),
    (check_published_counts, lambda n, k, r, keep: (n - k * r, round(n * keep)), "what *reaches* it"),
    (check_published_counts, lambda n, k, r, keep: (361, 253), "100 patches"),
    (check_ledger, ledger, None),
    (check_ledger, dict.fromkeys(LEDGER, (..., ...)), "has no verdict yet"),
    (check_ledger, dict.fromkeys(LEDGER, ...), "has no verdict yet"),
    (check_ledger, {claim: pair[0] for claim, pair in ledger.items()}, "a pair (verdict, section)"),
    (check_ledger, ledger | {"about twice the throughput of a 7B model": ("supported here", 4)}, "FLOPs are a bound"),
    (check_ledger, ledger | {third: ("supported here", 2)}, "better than dropping"),
    (check_ledger, ledger | {second: ("not supported here", 1)}, "neither confirms nor refutes"),
    (check_ledger, ledger | {first: ("not supported here", 3)}, "the evidence is not in section 3"),
    (check_ledger, ledger | {second: (NOT_CHECKED, 1)}, "None is expected"),
    (check_ledger, ledger | {first: ("wrong", 1)}, "one of supported here"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "answer", "fault"), ANSWERS, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(ANSWERS)]
)
def test_checks_name_the_fault(check, answer, fault: str | None) -> None:
    says_what_is_wrong(check(answer), fault)


def test_every_check_was_tried_with_three_wrong_answers_and_an_empty_one() -> None:
    each_was_tried(ANSWERS, checks_tradeoff, checks_paper)
