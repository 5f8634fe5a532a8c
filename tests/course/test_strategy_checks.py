"""The checks of chapter 05 name what is wrong with typical wrong answers, and accept right ones."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from helpers.checks import each_was_tried, says_what_is_wrong
from torch.nn.functional import normalize

import illava_lab as il
from illava_lab.course import checks_strategy
from illava_lab.course.checks_strategy import check_centre, check_mended, check_nearest, check_own, code_lines


# --------------------------------------------------------------------------------------------- a score by place
def steps(tokens: il.Tokens, places: torch.Tensor) -> torch.Tensor:
    height, width = tokens.grid
    return (places // width - (height - 1) / 2) ** 2 + (places % width - (width - 1) / 2) ** 2


def numbers(tokens: il.Tokens) -> torch.Tensor:
    return torch.arange(tokens.count).expand(tokens.batch, -1)


# --------------------------------------------------------------------------------------------- what stands out
class Deviation(il.Scorer):
    """Largest deviation from the image's mean."""

    name = "deviation"

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        x = tokens.hidden.float()
        return (x - x.nan_to_num().mean(dim=1, keepdim=True)).norm(dim=2)


class MixesRows(Deviation):
    """As given in the exercise."""

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        return (tokens.hidden.float() - tokens.hidden.float().mean(dim=(0, 1))).norm(dim=2)


class PoisonedMean(Deviation):
    """One NaN makes every score NaN."""

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        x = tokens.hidden.float()
        return (x - x.mean(dim=1, keepdim=True)).norm(dim=2)


class Preferred(Deviation):
    """What is NaN stands out most."""

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        return super().score(tokens).nan_to_num(nan=1e6)


class InPlace(Deviation):
    """Changes the tokens."""

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        return tokens.hidden.sub_(tokens.hidden.nan_to_num().mean(dim=1, keepdim=True)).float().norm(dim=2)


class Norm(Deviation):
    """Sound, but not what was asked for."""

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        return -super().score(tokens)


# --------------------------------------------------------------------------------------------- the nearest survivor
def likeness(hidden: torch.Tensor, anchor: torch.Tensor, source: torch.Tensor, unit: bool = True) -> torch.Tensor:
    x = normalize(hidden, dim=2) if unit else hidden
    return torch.stack([row[s] @ row[a].T for row, s, a in zip(x, source, anchor, strict=True)])


# --------------------------------------------------------------------------------------------- one's own
class Largest(il.Scorer):
    """Largest norm."""

    name = "largest-for-the-check"

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        """The norm.

        Nothing else.
        """
        # a comment

        return tokens.hidden.norm(dim=2)


class Unregistered(Largest):
    """Not in the registry."""

    name = "unregistered-for-the-check"


class Long(Largest):
    """Sixteen lines and the first."""

    name = "long-for-the-check"

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        x = tokens.hidden
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        x = x + 0
        return x.norm(dim=2)


@pytest.fixture(autouse=True)
def two_more(registered: None) -> None:
    il.register(Largest)
    il.register(Long)


def table(name: str = Largest.name, flops: tuple[float, ...] = (0.7, 0.5), status: str = "ok") -> pd.DataFrame:
    rows = [("none", float("nan"), 0.9, "ok"), ("random", 0.7, 0.6, "ok"), ("random", 0.5, 0.5, "ok")]
    rows += [(name, share, 0.8, status) for share in flops]
    return pd.DataFrame(rows, columns=["strategy", "flops", "accuracy", "status"])


# check, arguments, what the message must name (None: it is right)
ANSWERS = [
    (check_centre, (lambda t: -steps(t, t.position),), None),
    (check_centre, (lambda t: -steps(t, numbers(t)),), "use tokens.position"),
    (check_centre, (lambda t: steps(t, t.position),), "highest scores are kept"),
    (check_centre, (lambda t: -(t.position - 12).abs().float(),), "a row (position // width)"),
    (check_centre, (lambda t: -steps(t, t.position)[0],), "shape must be (2, 5)"),
    (check_centre, (lambda t: 1 / steps(t, t.position),), "infinite or NaN"),
    (check_centre, (lambda t: ...,), "nothing is returned yet"),
    (check_mended, (Deviation,), None),
    (check_mended, (MixesRows,), "batch_equals_single is broken"),
    (check_mended, (PoisonedMean,), None),
    (check_mended, (Preferred,), "nan_survived is broken: token"),
    (check_mended, (InPlace,), "inputs_unchanged is broken: map changes tokens.hidden"),
    (check_mended, (Norm,), "stand out of their images"),
    (check_mended, (...,), "a class like"),
    (check_nearest, (lambda h, a, s: likeness(h, a, s).argmax(2),), None),
    (check_nearest, (lambda h, a, s: a.gather(1, likeness(h, a, s).argmax(2)),), "is the number of a token"),
    (check_nearest, (lambda h, a, s: likeness(h, a, s, unit=False).argmax(2),), "use the cosine"),
    (check_nearest, (lambda h, a, s: likeness(h, a, s).argmin(2),), "*most* similar"),
    (check_nearest, (lambda h, a, s: likeness(h, a, s).amax(2),), "whole number (torch.long)"),
    (check_nearest, (lambda h, a, s: likeness(h[:1].expand(2, -1, -1), a, s).argmax(2),), "each row has tokens of its own"),
    (check_nearest, (lambda h, a, s: likeness(h, a, s).argmax(2)[0],), "shape must be (2, 3)"),
    (check_nearest, (lambda h, a, s: ...,), "nothing is returned yet"),
    (check_own, (Largest, table()), None),
    (check_own, (Unregistered, table()), "put @il.register above"),
    (check_own, (MixesRows, table()), "batch_equals_single is broken"),
    (check_own, (Long, table()), "16 lines of code; at most 15"),
    (check_own, (Largest, None), "now put it into the table"),
    (check_own, (Largest, table("other")), "no row of"),
    (check_own, (Largest, table(status="RuntimeError: x")), "it fails on the model: RuntimeError"),
    (check_own, (Largest, table(flops=(0.7,))), "random was measured at 0.5 and 0.7"),
    (check_own, (..., None), "a class like"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "answer", "fault"), ANSWERS, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(ANSWERS)]
)
def test_checks_name_the_fault(check, answer: tuple, fault: str | None) -> None:
    says_what_is_wrong(check(*answer), fault)


def test_every_check_was_tried_with_three_wrong_answers_and_an_empty_one() -> None:
    each_was_tried(ANSWERS, checks_strategy)


def test_lines_of_code_are_counted_without_what_explains_them() -> None:
    assert code_lines(Largest) == 2
