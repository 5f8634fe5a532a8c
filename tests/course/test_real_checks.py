"""The checks of chapter 06 name what is wrong with typical wrong answers."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch
from helpers.checks import each_was_tried, says_what_is_wrong
from torch.nn.functional import kl_div

from illava_lab.course import checks_real
from illava_lab.course.checks_real import check_cache_bytes, check_divergence, check_on_another, check_smallest_keep


def words(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """(T, V) what each word adds to KL(p || q)."""
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    return p.exp() * (p - q)


def means(table: pd.DataFrame, strategy: str | None = "illava") -> pd.Series:
    rows = table if strategy is None else table[table["strategy"] == strategy]
    return rows.groupby("keep")["agreement"].mean()


def smallest(table: pd.DataFrame, strategy: str, least: float) -> float | None:
    enough = means(table, strategy).loc[lambda mean: mean >= least]
    return float(enough.index.min()) if len(enough) else None


# check, answer, what the message must name (None: it is right)
ANSWERS = [
    (check_divergence, lambda p, q: words(p, q).sum(-1).mean(), None),
    (check_divergence, lambda p, q: float(kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="batchmean")), None),
    (check_divergence, lambda p, q: words(p, q).sum(), "the sum over both tokens"),
    (check_divergence, lambda p, q: words(p, q).mean(), "also a mean over the vocabulary"),
    (check_divergence, lambda p, q: words(q, p).sum(-1).mean(), "that is KL(reduced || unreduced)"),
    (check_divergence, lambda p, q: words(p, q).sum(-1).mean() / math.log(2), "in bits"),
    (check_divergence, lambda p, q: -words(p, q).sum(-1).mean(), "never negative"),
    (check_divergence, lambda p, q: (p - q).abs().mean(), "softmax comes first"),
    (check_divergence, lambda p, q: -(p.softmax(-1) * q.log_softmax(-1)).sum(-1).mean(), "does not diverge from itself"),
    (check_divergence, lambda p, q: words(p, q).sum(-1), "one number is expected"),
    (check_divergence, lambda p, q: ..., "nothing is returned yet"),
    (check_cache_bytes, lambda tokens, heads, width, each: sum(tokens) * 2 * heads * width * each, None),
    (check_cache_bytes, lambda tokens, heads, width, each: sum(tokens) * heads * width * each, "a key *and* a value"),
    (check_cache_bytes, lambda tokens, heads, width, each: tokens[0] * len(tokens) * 2 * heads * width * each, "the first layer's tokens"),
    (check_cache_bytes, lambda tokens, heads, width, each: tokens[-1] * len(tokens) * 2 * heads * width * each, "the last layer's tokens"),
    (check_cache_bytes, lambda tokens, heads, width, each: sum(tokens) * 2 * width * each, "times the heads"),
    (check_cache_bytes, lambda tokens, heads, width, each: sum(tokens) * 16 * heads * width * each, "in bits"),
    (check_cache_bytes, lambda tokens, heads, width, each: sum(tokens) * 2 * heads * width * 4, "640 tokens in 32 layers"),
    (check_cache_bytes, lambda tokens, heads, width, each: ..., "nothing is returned yet"),
    (check_smallest_keep, smallest, None),
    (check_smallest_keep, lambda table, strategy, least: float(means(table).loc[lambda mean: mean >= least].index.max()), "the *smallest* keep"),
    (check_smallest_keep, lambda table, strategy, least: float(table.loc[table["agreement"] >= least, "keep"].min()), "the *mean* over the questions"),
    (check_smallest_keep, lambda table, strategy, least: smallest(table.assign(strategy="illava"), strategy, least), "fastv's rows"),
    (check_smallest_keep, lambda table, strategy, least: smallest(table, strategy, least + 1e-9), "includes it"),
    (check_smallest_keep, lambda table, strategy, least: smallest(table, strategy, least) or 1.0, "so None is expected"),
    (check_smallest_keep, lambda table, strategy, least: means(table).loc[lambda mean: mean >= least], "one number is expected, got Series"),
    (check_smallest_keep, lambda table, strategy, least: table["keeps"].min(), "your code stopped with KeyError"),
    (check_smallest_keep, lambda table, strategy, least: ..., "nothing is returned yet"),
    (check_on_another, lambda host, busy, slower: max(host, busy * slower), None),
    (check_on_another, lambda host, busy, slower: host + busy * slower, "they do not add up"),
    (check_on_another, lambda host, busy, slower: busy * slower, "waits for the host"),
    (check_on_another, lambda host, busy, slower: max(host, busy) * slower, "not the host"),
    (check_on_another, lambda host, busy, slower: max(host, busy / slower), "it is the host that waits"),
    (check_on_another, lambda host, busy, slower: ..., "nothing is returned yet"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "answer", "fault"), ANSWERS, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(ANSWERS)]
)
def test_checks_name_the_fault(check, answer, fault: str | None) -> None:
    says_what_is_wrong(check(answer), fault)


def test_every_check_was_tried_with_three_wrong_answers_and_an_empty_one() -> None:
    each_was_tried(ANSWERS, checks_real)
