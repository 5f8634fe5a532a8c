"""A difference between two methods in words: what a prediction chooses from, and what a finding says."""

from __future__ import annotations

from illava_lab.measuring.statistics import Difference

BETTER, WORSE, ALIKE = "better", "worse", "these questions cannot tell"
OUTCOMES = [BETTER, WORSE, ALIKE]


def outcome(difference: Difference) -> str:
    """Better or worse where the interval leaves no doubt, else that it cannot be told. One picture leaves doubt."""
    return BETTER if difference.low > 0 else WORSE if difference.high < 0 else ALIKE


def points(difference: Difference) -> str:
    """Such as "-2.5 points (95 % interval -6.2 to +0.0)"."""
    value, low, high = (100 * part for part in difference)
    return f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"
