"""How much is kept: a fraction or a count, and the rule that makes a count of it."""

from __future__ import annotations

from numbers import Real
from typing import Any

from illava_lab.errors import LabError

Keep = float | int


def check_keep(keep: Any, what: str) -> None:
    """Raise LabError unless keep is a fraction in (0, 1] (float) or a count >= 1 (int)."""
    is_count = isinstance(keep, int) and not isinstance(keep, bool)
    if not (is_count and keep >= 1) and not (isinstance(keep, float) and 0 < keep <= 1):
        raise LabError(f"{what} must be a fraction in (0, 1] or a count of at least 1, got {keep!r}")


def check_share(name: str, share: Any) -> float:
    """A fraction in (0, 1], of whatever type of number, as a float.

    Raises:
        LabError: no number, or one outside (0, 1].
    """
    number: Any = share.item() if hasattr(share, "item") and getattr(share, "ndim", None) == 0 else share
    fraction = float(number) if isinstance(number, Real) and not isinstance(number, bool) else 0.0
    if not 0 < fraction <= 1:
        raise LabError(f"{name} must be a fraction in (0, 1], got {share!r}")
    return fraction


def kept(keep: Keep, count: int, where: str) -> int:
    """How many of `count` visual tokens are kept: iLLaVA's rule, count - round(count * (1 - keep)), at least 1.

    Raises:
        LabError: a count above what is there.
    """
    if isinstance(keep, int):
        if keep > count:
            raise LabError(f"{where}: cannot keep {keep} of {count} visual tokens")
        return keep
    return max(1, count - round(count * (1 - keep)))
