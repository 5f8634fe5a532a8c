"""The difference between any two rows of a comparison, on the same questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from illava_lab.errors import LabError
from illava_lab.measuring.statistics import Difference, paired_difference
from illava_lab.measuring.summary import row_label
from illava_lab.measuring.tasks import Task

_ANSWERS = "answers"


def keep_answers(table: pd.DataFrame, right: Mapping[str, np.ndarray], task: Task, seed: int) -> None:
    """Note in a table which questions each of its rows answered right, for `difference`.

    Args:
        right: label of a row (`row_label`) -> (questions,) bool.
    """
    # Strings and lists only: pandas copies, compares and stores what hangs on a table.
    table.attrs[_ANSWERS] = {
        "images": task.samples["image_id"].tolist(),
        "right": {label: "".join(map(str, answers.astype(int))) for label, answers in right.items()},
        "seed": seed,
    }


def difference(table: pd.DataFrame, a: int | str, b: int | str, *, confidence: float = 0.95) -> Difference:
    """Accuracy of row `a` minus that of row `b`, with its paired interval: both answered the same questions.

    Two intervals against the bare model that overlap say nothing about each other; this one does.

    Args:
        table: from `compare`, or a part of one.
        a, b: a row's label, such as "illava keep 0.5" (or "illava" alone, where there is one such row), or its number
            in the table's index.
        confidence: of the interval, a percentile bootstrap over images.

    Raises:
        LabError: no such row, several of that name, a row that failed, or a table that `compare` did not return (one
            read from a file has lost the answers: the same call with its folder as `out` returns them at once).
    """
    answers = _kept(table)
    first, second = (_right(table, answers["right"], name, row) for name, row in (("a", a), ("b", b)))
    return paired_difference(first, second, answers["images"], seed=answers["seed"], confidence=confidence)


def answered_right(table: pd.DataFrame, row: int | str) -> np.ndarray:
    """(questions,) bool, which questions a row of a comparison answered right; `difference` names rows alike.

    Raises:
        LabError: as `difference`.
    """
    return _right(table, _kept(table)["right"], "row", row)


def _kept(table: pd.DataFrame) -> dict[str, Any]:
    answers: dict[str, Any] | None = table.attrs.get(_ANSWERS) if isinstance(table, pd.DataFrame) else None
    if answers is None:
        raise LabError(
            "table holds no answers: pass the one that compare returned; the same call with out= its folder does"
        )
    return answers


def _right(table: pd.DataFrame, right: Mapping[str, str], name: str, wanted: int | str) -> np.ndarray:
    labels = {index: row_label(row) for index, row in zip(table.index, table.itertuples(), strict=True)}
    strategies = dict(zip(table.index, table["strategy"], strict=True))
    found: list[Any] = [index for index in labels if wanted in (labels[index], index)]
    found = found or [index for index in labels if wanted == strategies[index]]
    if len(found) != 1:
        kind = "no row" if not found else f"{len(found)} rows"
        raise LabError(
            f"{name} must be one row of the table, {wanted!r} is {kind}; there are {', '.join(labels.values())}"
        )
    label = labels[found[0]]
    if label not in right:
        raise LabError(f"{name}: the row {label!r} has no answers, it failed: {table.loc[found[0], 'status']}")
    return np.array([digit == "1" for digit in right[label]])
