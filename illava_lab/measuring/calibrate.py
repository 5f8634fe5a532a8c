"""calibrate: a strategy whose pictures decide how many tokens stay, set so that a budget holds in their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.video import ImageOrVideo
from illava_lab.schedules.budget import DEFAULT_KEEP, AnyStrategy
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.lab import Lab, check_lab
from illava_lab.session.prompt import prefill


def calibrate(lab: Lab, strategy: AnyStrategy, images: Sequence[ImageOrVideo]) -> Strategy:
    """The same strategy with `typical` set: the share of their tokens that these pictures keep by themselves.

    A budget then holds in the mean over pictures like these: each keeps more or fewer than the schedule says, in
    proportion to what it would keep by itself.

    Raises:
        LabError: no lab, no pictures, or a strategy without such a setting.
    """
    check_lab(lab)
    strategy = make_strategy(strategy)
    if not strategy.own_count or "typical" not in {field.name for field in fields(strategy)}:
        raise LabError(
            f"{strategy.label} has nothing to calibrate: it needs own_count and a setting 'typical', such as "
            "prumerge(decides='image') has"
        )
    if not isinstance(images, (list, tuple)) or not images:
        raise LabError(f"images must be a list of at least one picture, got {images!r:.120}")
    nothing: dict[str, Any] = {"typical": 0.0}
    bare = replace(strategy, **nothing)
    schedule, shares = Schedule.for_budget(bare, lab.model, keep=DEFAULT_KEEP), []
    for image in images:
        with attach(lab.model, bare, schedule) as trace:
            prefill(lab.model, lab.inputs([image], ["What is this?"]))
            shares.append(trace.left() / trace.layout().tokens)
    found: dict[str, Any] = {"typical": sum(shares) / len(shares)}
    return replace(strategy, **found)
