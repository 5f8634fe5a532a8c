"""What a table is asked for: every strategy at every budget, and every preset, each with its schedule."""

from __future__ import annotations

import dataclasses
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import psutil
from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.method.composed import Composed
from illava_lab.method.registry import get_strategy, make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.layout import Layout
from illava_lab.paths import quoted
from illava_lab.schedules.budget import AnyStrategy, Budget, preset_strategy
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import check_count

BASELINE = "none"
COPIES = 4  # of a batch that are there at once while its pictures are prepared
LARGEST_SEED = 2**63 - 1  # of torch's generators

OneOrSeveral = AnyStrategy | Sequence[AnyStrategy]


@dataclass(frozen=True, eq=False)
class Row:
    """One row to be: a strategy at a budget, with the schedule, or with the reason why there is none."""

    strategy: Strategy
    given: Budget
    schedule: Schedule | Exception
    name: str

    @property
    def planned(self) -> Schedule:
        """The schedule.

        Raises:
            Exception: the reason why there is none.
        """
        if isinstance(self.schedule, Exception):
            raise self.schedule
        return self.schedule

    @property
    def label(self) -> str:
        """What tells the row from all others of its table."""
        return f"{self.name} {dataclasses.replace(self.given, default=False)}"

    @property
    def budget(self) -> dict[str, Any]:
        """The columns of the budget, NaN where it is another one."""
        columns: dict[str, Any] = dict.fromkeys(("keep", "flops", "preset", "schedule"), math.nan)
        amount = self.given.amount
        return columns | {self.given.kind: str(amount) if isinstance(amount, Plan) else amount}


def baseline() -> Row:
    """The strategy that keeps everything."""
    return Row(get_strategy(BASELINE)(), Budget(keep=1.0), Schedule(), BASELINE)


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a verb that makes a table was asked for, before any work.

    Attributes:
        strategies: names in the table with their instances, the baseline left out.
        baseline: whether "none" was named.
        budgets: what every one of these gets.
        presets: settings of papers, each a row of its own.
    """

    strategies: dict[str, Strategy]
    baseline: bool
    budgets: list[Budget]
    presets: list[Budget]

    @property
    def needs_prompt(self) -> bool:
        """Whether a budget depends on the length of the prompt."""
        return any(budget.flops is not None for budget in self.budgets)

    def rows(self, model: nn.Module, text_tokens: int = 0, layouts: Sequence[Layout] | None = None) -> list[Row]:
        """Every strategy at every budget, then the presets; text and layouts as in `Schedule.for_budget`."""
        out = [
            _row(name, strategy, budget, model, text_tokens, layouts)
            for name, strategy in self.strategies.items()
            for budget in self.budgets
        ]
        for budget in self.presets:
            strategy = preset_strategy(str(budget.preset))
            out.append(_row(strategy.label, strategy, budget, model, text_tokens, layouts))
        return out


def _row(
    name: str, strategy: Strategy, budget: Budget, model: nn.Module, text_tokens: int, layouts: Sequence[Layout] | None
) -> Row:
    try:
        schedule: Schedule | Exception = budget.plan(strategy, model, text_tokens, layouts)
    except Exception as error:  # not every method reaches every budget on every model
        schedule = error
    return Row(strategy, budget, schedule, name)


def wanted(
    strategy: OneOrSeveral | None,
    keep: float | Sequence[float] | None,
    flops: float | Sequence[float] | None,
    preset: str | Sequence[str] | None,
    schedule: Plan | Sequence[Plan] | None,
    *,
    default: Sequence[float],
    seed: int,
) -> Wanted:
    """Read the arguments that all verbs share, each of which may be one or several here.

    Args:
        default: keeps that strategies get which come without a budget.
        seed: of strategies that have one and are not given as instances.

    Raises:
        LabError: nothing to run, an unknown strategy or preset, what is given twice, a budget that is none, a budget
            without a strategy, or a bad seed.
    """
    seed = check_count("seed", seed, least=0, most=LARGEST_SEED)
    presets = [Budget(preset=one) for one in several("preset", preset)]
    budgets = [
        Budget(**{kind: one})
        for kind, given in (("keep", keep), ("flops", flops), ("schedule", schedule))
        for one in several(kind, given)
    ]
    named: dict[str, Strategy] = {}
    bare = False
    for given in several("strategy", strategy):
        name, instance = _named(given, seed)
        if name == BASELINE:
            bare = True
        elif name in named:
            raise LabError(f"strategy: {name} is given twice")
        else:
            named[name] = instance
    if not named and not bare and not presets:
        raise LabError("strategy must name at least one strategy, or preset at least one preset")
    if budgets and not named and not all(budget.keeps_everything for budget in budgets):
        raise LabError(f"{budgets[0]} needs a strategy that reduces, beside 'none' and presets; name one")
    if named and not budgets:
        budgets = [Budget(keep=share, default=True) for share in default]
    return Wanted(named, bare, budgets, presets)


def check_out(out: Any) -> None:
    """Raise LabError unless this is None or the name of a folder, that is there or can be made."""
    if out is None:
        return
    name = os.fspath(out) if isinstance(out, PathLike) else out
    if not isinstance(name, str) or not name.strip():
        raise LabError(f"out must name a folder, or be None, got {out!r:.200}")
    is_folder = True
    try:
        is_folder = stat.S_ISDIR(os.stat(name).st_mode)
    except (FileNotFoundError, NotADirectoryError):  # it is made when the work begins, or refused then
        pass
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise LabError(f"out must name a folder, but {quoted(name)} cannot be one: {why}") from None
    if not is_folder:
        raise LabError(f"out must name a folder, but {quoted(name)} is a file")


def check_batch(name: str, batch: int, single: Mapping[str, Tensor]) -> None:
    """Refuse more prompts at once than there is memory to prepare.

    Args:
        single: model inputs of one of them.

    Raises:
        LabError: with the most that can be.
    """
    size = sum(value.nbytes for value in single.values())
    most = max(1, psutil.virtual_memory().available // (COPIES * size))
    if batch > most:
        raise LabError(f"{name} must be at most {most:,}, for whose pictures there is memory, got {batch:,}")


def several(name: str, given: Any) -> list[Any]:
    """One or several, as a list.

    Raises:
        LabError: an empty list, or something that is given twice.
    """
    if given is None:
        return []
    one = isinstance(given, (str, type, Strategy, Plan)) or not hasattr(given, "__iter__") or _is_scalar(given)
    out = [given] if one else list(given)
    if not out:
        raise LabError(f"{name} must hold at least one, got an empty list")
    if any(_equal(first, second) for i, first in enumerate(out) for second in out[:i]):
        raise LabError(f"{name} holds one twice: {out}")
    return out


def _equal(first: Any, second: Any) -> bool:
    try:
        return bool(first == second)
    except Exception:  # arrays, say, which are refused further on
        return False


def _is_scalar(given: Any) -> bool:
    return getattr(given, "ndim", None) == 0


def _named(given: AnyStrategy, seed: int) -> tuple[str, Strategy]:
    """The name in the table, and the instance: settings that differ from the default ones are part of the name."""
    if isinstance(given, Strategy):
        return given.label, given
    strategy = make_strategy(given)
    if isinstance(strategy, Composed):  # by name, so that each part has a stage of its own
        return strategy.label, Composed(*(_seeded(part, seed) for part in strategy.parts))
    return strategy.name, _seeded(strategy, seed)


def _seeded(strategy: Strategy, seed: int) -> Strategy:
    settings: dict[str, Any] = {"seed": seed} if any(f.name == "seed" for f in dataclasses.fields(strategy)) else {}
    return dataclasses.replace(strategy, **settings)
