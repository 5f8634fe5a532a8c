"""The automatic checks of chapter 00: where an answer breaks, which questions break first, a strategy of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from illava_lab.course.exercises import exercise, need
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Tokens
from illava_lab.testing import check_strategy
from illava_lab.widgets import KeepSlider


def needed(keeps: Sequence[float], texts: Sequence[str]) -> float:
    """The smallest keep from which on the answer is that of the first, which reduces least.

    Args:
        keeps: falling.
        texts: the answer at each.
    """
    right = 0
    while right < len(texts) and texts[right] == texts[0]:
        right += 1
    return keeps[right - 1]


@exercise
def check_edge(smallest_keep: Any, slider: KeepSlider) -> str:
    """The smallest position of the slider at which the answer is right and stays right at every larger one."""
    right = {
        keep: answer.text == slider.answers[0].text for keep, answer in zip(slider.keeps, slider.answers, strict=True)
    }
    need(smallest_keep is not ..., f"one of the slider's positions is expected: {slider.keeps}")
    need(smallest_keep in right, f"{smallest_keep!r} is no position of the slider; those are {slider.keeps}")
    wrong = [keep for keep in right if keep >= smallest_keep and not right[keep]]
    need(not wrong, f"at keep {max(wrong, default=0):g} the answer is already wrong")
    lower = max((keep for keep in right if keep < smallest_keep), default=None)
    need(lower is None or not right[lower], f"you can go lower: at keep {lower} it is still right")
    return f"{100 * smallest_keep:g} % of the tokens are enough for this question, as is every larger part."


def losses(table: pd.DataFrame, strategy: str = "illava", keep: float = 0.3) -> pd.Series:
    """Accuracy lost against the bare model, by kind of question, as fractions.

    Args:
        table: from `illava_lab.compare`.
    """
    columns = [column for column in table if column.startswith("accuracy_")]
    rows = table.set_index(["strategy", "keep"])[columns]
    lost = rows.loc[("none", 1.0)] - rows.loc[(strategy, keep)]
    return lost.rename(lambda column: column.removeprefix("accuracy_"))


@exercise
def check_worst(worst: Any, losses: pd.Series) -> str:
    """The category of questions that lost most; `losses` are fractions by category."""
    need(
        isinstance(worst, str) and worst in losses,
        f"one of {', '.join(map(repr, losses.index))} is expected, got {worst!r}",
    )
    lost = 100 * losses[worst]
    need(losses[worst] == losses.max(), f"{worst} lost {lost:.0f} points; another category lost more")
    return f"{worst} lost {lost:.0f} points."


@exercise
def check_smallest(strategies: Mapping[str, type[Strategy]]) -> str:
    """A registered strategy "smallest-norm" that keeps the tokens with the smallest norm, and every promise."""
    need(
        "smallest-norm" in strategies,
        'no strategy named "smallest-norm" is registered yet; @il.register goes above the class',
    )
    strategy = strategies["smallest-norm"]()
    kept = strategy.map(Tokens("encoder", torch.tensor([[[3.0], [-1.0], [0.5], [2.0]]])), keep=2).anchor[0].tolist()
    need(
        kept != [0, 3], "of norms 3, 1, 0.5 and 2 it keeps 3 and 2: these are the largest; the highest *score* is kept"
    )
    need(kept == [1, 2], f"of norms 3, 1, 0.5 and 2 it must keep 1 and 0.5, which are tokens 1 and 2; it keeps {kept}")
    for fault in check_strategy(strategy, raises=False).broken:
        need(False, f"the promise {fault.promise} is broken: {fault.message}")
    return "it keeps the smallest, and every promise that a strategy makes."
