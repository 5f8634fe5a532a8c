"""How sure a difference between two accuracies is."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from illava_lab.errors import LabError
from illava_lab.session.asked import check_count


class Difference(NamedTuple):
    """A difference of two accuracies, in fractions, and its interval, which is NaN where there is only one image."""

    value: float
    low: float
    high: float


def paired_difference(
    right: np.ndarray, baseline: np.ndarray, image_ids: Sequence[str], *, seed: int = 0, confidence: float = 0.95
) -> Difference:
    """Accuracy minus the baseline's on the same questions, with a percentile bootstrap interval over images.

    Whole images are drawn, not questions: questions about one image stand or fall together, and intervals that took
    them for independent would be too narrow.

    Args:
        right, baseline: (questions,) bool.
        image_ids: the image of each question.

    Raises:
        LabError: no questions, lists of different lengths, a seed or a confidence that is none.
    """
    if not len(right) == len(baseline) == len(image_ids) or not len(right):
        lengths = f"{len(right)}, {len(baseline)} and {len(image_ids)}"
        raise LabError(f"right, baseline and image_ids must have one entry for each question, got {lengths}")
    if isinstance(confidence, bool) or not isinstance(confidence, Real) or not 0 < confidence < 1:
        raise LabError(f"confidence must be a number between 0 and 1, such as 0.95, got {confidence!r}")
    seed = check_count("seed", seed, least=0)
    gain = np.asarray(right, dtype=float) - np.asarray(baseline, dtype=float)
    sums = pd.Series(gain).groupby(np.asarray(image_ids)).agg(["sum", "count"])
    if len(sums) < 2:
        return Difference(float(gain.mean()), float("nan"), float("nan"))
    interval = bootstrap(
        (sums["sum"].to_numpy(), sums["count"].to_numpy()),
        lambda gain, questions, axis: gain.sum(axis) / questions.sum(axis),
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",  # BCa, scipy's default, is not defined where no answer changes
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Difference(float(gain.mean()), float(interval.low), float(interval.high))
