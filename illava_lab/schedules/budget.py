"""Budget: how much a run may spend. One of keep, FLOPs, preset and schedule, in the same words for every verb."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from illava_lab.errors import LabError
from illava_lab.method.keep import check_share
from illava_lab.method.registry import get_strategy, make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.layout import Layout
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.presets import get_preset
from illava_lab.schedules.schedule import Schedule

DEFAULT_KEEP = 0.5

AnyStrategy = str | Strategy | type[Strategy]


@dataclass(frozen=True)
class Budget:
    """One of four, the others None.

    Attributes:
        keep: fraction of an image's visual tokens that the last LLM layer sees.
        flops: fraction of the bare model's prefill FLOPs.
        preset: name of a paper's setting.
        schedule: exact layers and amounts.
        default: nobody asked for it; it is what the lab takes where a strategy comes without a budget.

    Raises:
        LabError: none or several of them, a fraction outside (0, 1], an unknown preset, no Schedule.
    """

    keep: float | None = None
    flops: float | None = None
    preset: str | None = None
    schedule: Plan | None = None
    default: bool = False

    def __post_init__(self) -> None:
        given = [name for name in ("keep", "flops", "preset", "schedule") if getattr(self, name) is not None]
        if len(given) != 1:
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in given) or "none of them"
            raise LabError(f"give one budget of keep, flops, preset and schedule; got {values}")
        for name in ("keep", "flops"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_share(name, getattr(self, name)))
        if self.preset is not None:
            get_preset(self.preset)
        if self.schedule is not None and not isinstance(self.schedule, Plan):
            raise LabError(f"schedule must be a Schedule, got {self.schedule!r}")

    @property
    def kind(self) -> str:
        """Which of the four it is."""
        return next(name for name in ("keep", "flops", "preset", "schedule") if getattr(self, name) is not None)

    @property
    def amount(self) -> Any:
        """The value of that one."""
        return getattr(self, self.kind)

    @property
    def keeps_everything(self) -> bool:
        """Whether no token is asked to go."""
        return not self.schedule.reduces if self.schedule is not None else self.amount == 1

    def __str__(self) -> str:
        words = {"keep": "keep", "flops": "FLOPs", "preset": "preset", "schedule": "schedule"}[self.kind]
        amount = f"{self.amount:g}" if self.kind in ("keep", "flops") else str(self.amount)
        return f"{words} {amount}{' (the default)' if self.default else ''}"

    def plan(
        self,
        strategy: Strategy,
        model: nn.Module,
        text_tokens: int = 64,
        layouts: Sequence[Layout] | None = None,
    ) -> Schedule:
        """The layers at which this strategy reduces this model to stay within the budget.

        Args:
            text_tokens, layouts: of the prompt, for `flops`; see `Schedule.for_budget`.

        Raises:
            LabError: the strategy cannot reach the budget on this model.
        """
        if self.schedule is not None:
            return Schedule.of(self.schedule)
        if self.preset is not None:
            return Schedule.preset(self.preset, model)
        share = {"keep": self.keep} if self.keep is not None else {"flops": self.flops}
        return Schedule.for_budget(strategy, model, text_tokens=text_tokens, layouts=layouts, **share)


def choose(
    strategy: AnyStrategy | None,
    keep: float | None = None,
    flops: float | None = None,
    preset: str | None = None,
    schedule: Plan | None = None,
) -> tuple[Strategy, Budget]:
    """What one run is asked to do, in the words that `ask`, `chat` and `converse` share.

    Without a strategy and a budget that is the bare model. A strategy that reduces and comes without a budget gets
    ``keep=0.5``. A preset brings its own strategy with its settings.

    Raises:
        LabError: an unknown strategy or preset; two budgets at once; a budget without a strategy that could spend it;
            a preset beside another strategy than its own.
    """
    named = None if strategy is None else make_strategy(strategy)
    given = any(value is not None for value in (keep, flops, preset, schedule))
    if not given:
        reduces = named is not None and named.kind != "none"
        return named or get_strategy("none")(), Budget(keep=DEFAULT_KEEP if reduces else 1.0, default=reduces)
    budget = Budget(keep, flops, preset, schedule)
    if preset is not None:
        return preset_strategy(preset, strategy), budget
    if (named is None or named.kind == "none") and not budget.keeps_everything:
        who = "no strategy is named" if named is None else f"the strategy {named.name!r} keeps every token"
        raise LabError(f"{budget} cannot be met, because {who}; name one that reduces, such as strategy='illava'")
    return named or get_strategy("none")(), budget


def preset_strategy(preset: str, beside: AnyStrategy | None = None) -> Strategy:
    """The strategy of a preset, with its settings.

    Args:
        beside: the strategy that was named as well, if any: a name or a class may repeat that of the preset.

    Raises:
        LabError: an unknown preset, or another strategy (or other settings) beside it.
    """
    published = get_preset(preset)
    own = get_strategy(published.strategy)(**published.settings)
    if beside is not None and beside not in (published.strategy, type(own), own):
        other = beside if isinstance(beside, str) else repr(beside)
        raise LabError(f"the preset {preset!r} runs {published.label}, not {other}: leave one of the two out")
    return own
