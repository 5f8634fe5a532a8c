"""attach: the only place that changes a model's behaviour, and the place that changes it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from illava_lab.errors import LabError, one_of
from illava_lab.hooks.llm.language_model import LlmHooks, Positions
from illava_lab.hooks.towers.cells import CellsTower
from illava_lab.hooks.towers.packed import PackedTower
from illava_lab.hooks.towers.rows import RowsTower
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.schedules.plan import Plan
from illava_lab.trace.trace import Trace

_MARK = "_illava_attached"


def is_attached(model: nn.Module) -> bool:
    """Whether a strategy is attached to this model right now."""
    return _MARK in vars(model)


@contextmanager
def attach(
    model: nn.Module,
    strategy: str | Strategy | type[Strategy],
    schedule: Plan | None = None,
    *,
    positions: Positions = "original",
) -> Iterator[Trace]:
    """Reduce visual tokens in everything that runs the model inside the `with` block, `forward` and `generate` alike.

    Args:
        model: an unmodified transformers model of a supported family, in eval mode.
        strategy: a registered name, a Strategy class or an instance.
        schedule: which layers reduce, and to how many; None reduces nowhere.
        positions: "original" keeps the survivors' position ids; "packed" renumbers them without gaps (not for models
            with positions on several axes, such as Qwen2-VL).

    Yields:
        The Trace, refilled by every prefill.

    Raises:
        LabError: before anything is changed, if model, strategy, schedule and positions do not fit each other. On
            leaving, also by an exception from inside, the model is exactly what it was.
    """
    strategy, schedule = make_strategy(strategy), Plan() if schedule is None else schedule
    if not isinstance(schedule, Plan):
        raise LabError(f"schedule must be a Schedule, got {schedule!r}")
    anatomy = describe(model)
    schedule.check(anatomy, strategy)
    one_of("positions", positions, ("original", "packed"))
    if positions == "packed" and anatomy.cells is not None:
        raise LabError('positions="packed" is not defined for positions of time, row and column; allowed: "original"')
    if model.training:
        raise LabError("the model is in training mode; call model.eval() first")
    if is_attached(model):
        raise LabError("this model already has a strategy attached; describe both stages in one schedule")
    trace = Trace(anatomy.cls_tokens)
    with ExitStack() as undo:
        object.__setattr__(model, _MARK, True)
        undo.callback(model.__dict__.pop, _MARK)
        stage = PackedTower if anatomy.cells else CellsTower if anatomy.shuffle > 1 else RowsTower
        encoder = stage(anatomy, strategy, schedule.plan("encoder"), schedule.image)
        llm = LlmHooks(anatomy, strategy, schedule.plan("llm"), positions, encoder, trace)
        encoder.watch(undo)
        if schedule.reduces:
            encoder.install(undo)
            llm.install(undo)
        else:
            llm.watch(undo)
        yield trace
