"""Equal budgets: the schedule by which a strategy ends with a wanted share of visual tokens, or of FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import ceil

from torch import nn

from illava_lab.errors import LabError, hosting
from illava_lab.method.keep import check_share
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import STAGES, Stage
from illava_lab.models.anatomy import Anatomy
from illava_lab.models.families import describe
from illava_lab.models.layout import Layout
from illava_lab.schedules.flops import prefill_flops
from illava_lab.schedules.plan import Plan

TOLERANCE = 0.01


def plan_for_budget(
    strategy: str | Strategy | type[Strategy],
    model: nn.Module,
    *,
    keep: float | None = None,
    flops: float | None = None,
    stages: Sequence[Stage] | None = None,
    text_tokens: int = 64,
    layouts: Sequence[Layout] | None = None,
) -> Plan:
    """The schedule by which a strategy, at the layers it stands for, reaches a budget: `Schedule.for_budget` says how.

    Raises:
        LabError: keep or flops outside (0, 1], both or neither of them; a strategy with no stage left; a budget that
            the strategy cannot reach in this model, with the least that it can.
    """
    strategy, anatomy = make_strategy(strategy), describe(model)
    given = {name: value for name, value in {"keep": keep, "flops": flops}.items() if value is not None}
    if len(given) != 1:
        raise LabError(f"give a budget as keep or as flops, one of them; got keep={keep!r}, flops={flops!r}")
    ((name, share),) = given.items()
    share = check_share(name, share)
    with hosting(f"strategy {strategy.name!r}"):
        wanted = stages or strategy.home or strategy.stages
        serves = [stage for stage in STAGES if stage in strategy.stages and stage in wanted]
        if not serves and strategy.kind != "none":
            raise LabError(f"strategy {strategy.name!r} serves {strategy.stages}, not {tuple(wanted)}")
        if not serves or share == 1:
            return Plan()
        if serves == ["image"]:
            Plan(image=1.0).check(anatomy, strategy)  # refused where pictures come in any size
        if keep is not None:
            return _ending_with(max(1, round(anatomy.patches * share)), strategy, anatomy, serves)
        count = partial(prefill_flops, model, text_tokens=text_tokens, layouts=layouts)
        return _for_flops(share, strategy, anatomy, serves, count)


def _ending_with(final: int, strategy: Strategy, anatomy: Anatomy, serves: list[Stage]) -> Plan:
    """The schedule that leaves `final` visual tokens of an image; in fractions where images differ in their number.

    Raises:
        LabError: the strategy cannot.
    """
    patches = anatomy.patches
    if serves == ["image"]:
        return Plan(image=strategy.reachable_keep(final, anatomy.grid))
    between = final if "llm" not in serves else patches
    if len(serves) == 2:
        between = max(final, round(patches * (final / patches) ** strategy.encoder_share))
    ends: dict[Stage, tuple[int, int]] = {"encoder": (patches, between), "llm": (between, final)}
    counts = {stage: _split(strategy, stage, anatomy, *ends[stage]) for stage in serves}
    schedule = Plan(counts.get("encoder", {}), counts.get("llm", {}))
    return schedule if anatomy.fixed else _in_fractions(schedule, anatomy)


def _in_fractions(schedule: Plan, anatomy: Anatomy) -> Plan:
    """The same for images of any number of tokens."""
    counts = schedule.tokens(anatomy)
    found = {"encoder": counts["encoder"], "llm": [counts["encoder"][-1], *counts["llm"]]}  # by what a layer reduces

    def shares(stage: Stage) -> dict[int, float]:
        return {at: found[stage][at + 1] / found[stage][at] for at in schedule.plan(stage)}

    return Plan(shares("encoder"), shares("llm"), schedule.image)


def _split(strategy: Strategy, stage: Stage, anatomy: Anatomy, before: int, after: int) -> dict[int, int]:
    """Counts after each of the strategy's layers in a stage.

    Raises:
        LabError: even removing all it can at every layer, the strategy keeps more.
    """
    layers = strategy.layers(stage, anatomy.depth(stage))
    if stage == "llm":
        layers = [anatomy.llm_place(layer, strategy.at(stage, layer).first_llm_layer) for layer in layers]
    layers = sorted({*layers})
    counts = strategy.counts(stage, len(layers), before, after)
    smallest = strategy.smallest_keep_in(stage)
    if counts[0] < ceil(before * smallest):
        least = before
        for _ in layers:
            least = ceil(least * smallest)
        raise LabError(
            f"{strategy.name} cannot go from {before} to {after} tokens in {len(layers)} layers; "
            f"it keeps at least {least}"
        )
    return dict(zip(layers, counts, strict=True))


def _for_flops(
    share: float, strategy: Strategy, anatomy: Anatomy, serves: list[Stage], count: Callable[..., float]
) -> Plan:
    """Bisection over the number of tokens left: more of them never cost less.

    Args:
        count: FLOPs with a strategy and a schedule, or of the bare model.

    Raises:
        LabError: even the fewest tokens cost more.
    """
    bare = count()
    tried: dict[int, tuple[float, Plan]] = {}

    def cost(final: int) -> float:
        """Share of the bare model's FLOPs; 0 where the strategy cannot leave so few."""
        if final not in tried:
            try:
                schedule = _ending_with(final, strategy, anatomy, serves)
            except LabError:
                return 0.0
            tried[final] = count(strategy, schedule) / bare, schedule
        return tried[final][0]

    low, high = 1, anatomy.patches
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= share else (low, middle)
    cost(low), cost(high)
    cheapest = min(cost for cost, _ in tried.values())
    if cheapest > share * (1 + TOLERANCE):
        raise LabError(
            f"{strategy.name} cannot reach {share:g} of this model's prefill FLOPs: with {min(tried)} of "
            f"{anatomy.patches} visual tokens left it still takes {cheapest:.2f}"
        )
    return min(tried.values(), key=lambda entry: abs(entry[0] - share))[1]
