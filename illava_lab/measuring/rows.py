"""What compare and bench are asked to do: every strategy at every budget, each with its schedule."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from illava_lab.errors import LabError
from illava_lab.method.registry import get_strategy, make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.layout import Layout
from illava_lab.schedules.presets import PRESETS
from illava_lab.schedules.schedule import Schedule

BASELINE = "none"
DEFAULT_KEEP = (0.7, 0.5, 0.3)

Budget = tuple[str, float]  # ("keep" or "flops", fraction)


@dataclass(frozen=True, eq=False)
class Row:
    """One row to be: a strategy at a budget, with the schedule, or with the reason why there is none."""

    name: str
    kind: str  # "keep", "flops" or "preset"
    share: float | str
    strategy: Strategy
    schedule: Schedule | Exception

    @property
    def label(self) -> str:
        return f"{self.name} {self.share}" if self.kind == "keep" else f"{self.name} {self.kind} {self.share}"

    @property
    def budget(self) -> dict[str, Any]:
        """The columns `keep` and `flops`, NaN where not given, and `preset` where there is one."""
        return {"keep": math.nan, "flops": math.nan, self.kind: self.share}


def baseline() -> Row:
    """The strategy that keeps everything."""
    return Row(BASELINE, "keep", 1.0, get_strategy(BASELINE)(), Schedule())


def rows(
    model: nn.Module,
    named: dict[str, Strategy],
    budgets: Sequence[Budget],
    text_tokens: int,
    layouts: Sequence[Layout] | None = None,
) -> list[Row]:
    """Every strategy at every budget, without the baseline; text and layouts as in `Schedule.for_budget`."""
    out = []
    for name, strategy in named.items():
        for kind, share in budgets:
            try:
                schedule: Schedule | Exception = Schedule.for_budget(
                    strategy, model, text_tokens=text_tokens, layouts=layouts, **{kind: share}
                )
            except Exception as error:  # not every method reaches every budget on every model
                schedule = error
            out.append(Row(name, kind, share, strategy, schedule))
    return out


def preset_rows(model: nn.Module, presets: Sequence[str]) -> list[Row]:
    """The settings of papers, each with its own strategy.

    Raises:
        LabError: an unknown preset.
    """
    out = []
    for preset in presets:
        if preset not in PRESETS:
            raise LabError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
        name = PRESETS[preset].strategy
        try:
            schedule: Schedule | Exception = Schedule.preset(preset, model)
        except LabError as error:  # a model with fewer layers than the preset needs
            schedule = error
        out.append(Row(name, "preset", preset, get_strategy(name)(), schedule))
    return out


def named_strategies(strategies: Any, seed: int) -> dict[str, Strategy]:
    """Names in the table with their instances, the baseline left out.

    Raises:
        LabError: a bad seed, no strategy at all, an unknown one, or one that is given twice.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise LabError(f"seed must be a whole number of at least 0, got {seed!r}")
    strategies = [strategies] if isinstance(strategies, (str, Strategy, type)) else list(strategies)
    if not strategies:
        raise LabError("strategies must name at least one strategy, got an empty list")
    named: dict[str, Strategy] = {}
    for given in strategies:
        name, strategy = _named(given, seed)
        if name == BASELINE:
            continue
        if name in named:
            raise LabError(f"strategies: {name} is given twice")
        named[name] = strategy
    return named


def budgets(keep: Any, flops: Any) -> list[Budget]:
    """The budgets that every strategy gets.

    Raises:
        LabError: an empty list, a share outside (0, 1], or one that is given twice.
    """
    out = []
    for kind, given in (("keep", keep), ("flops", flops)):
        shares = [] if given is None else [given] if isinstance(given, (int, float)) else list(given)
        if given is not None and not shares:
            raise LabError(f"{kind} must hold at least one fraction, got an empty list")
        for share in shares:
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
                raise LabError(f"{kind} must be fractions in (0, 1], got {share!r}")
        if len(set(shares)) < len(shares):
            raise LabError(f"{kind} holds a fraction twice: {shares}")
        out += [(kind, float(share)) for share in shares]
    return out


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise LabError unless the value is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise LabError(f"{name} must be a whole number of at least {least}, got {value!r}")


def reason(error: BaseException) -> str:
    """Why something failed, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, LabError) else f"{type(error).__name__}: {text}"


def _named(given: Any, seed: int) -> tuple[str, Strategy]:
    """The name in the table, and the instance: settings that differ from the default ones are part of the name."""
    if isinstance(given, Strategy):
        settings = [f for f in dataclasses.fields(given) if getattr(given, f.name) != f.default]
        inside = ", ".join(f"{f.name}={getattr(given, f.name)!r}" for f in settings)
        return f"{given.name}({inside})" if inside else given.name, given
    strategy = make_strategy(given)
    if any(f.name == "seed" for f in dataclasses.fields(strategy)):
        strategy = dataclasses.replace(strategy, seed=seed)
    return strategy.name, strategy
