"""attach: the only place that changes a model's behaviour, and the place that changes it back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from illava_lab.errors import LabError, one_of
from illava_lab.hooks.attachment import Attachment, Positions
from illava_lab.hooks.changes import Changes
from illava_lab.hooks.connectors.anyres import Anyres
from illava_lab.hooks.connectors.connector import Connector, watch
from illava_lab.hooks.connectors.frames import Frames
from illava_lab.hooks.connectors.merged import Merged
from illava_lab.hooks.connectors.plain import Plain
from illava_lab.hooks.graphs.store import graphs_of
from illava_lab.hooks.llm.language_model import LanguageModel
from illava_lab.hooks.llm.watch import Watch
from illava_lab.hooks.towers.cells import ShuffledCells
from illava_lab.hooks.towers.packed import PackedCells
from illava_lab.hooks.towers.rows import Rows
from illava_lab.hooks.towers.tower import Tower
from illava_lab.hooks.towers.uneven import UnevenRows
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.method.blocks import block, undone
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe, unwrap
from illava_lab.models.layout import Medium
from illava_lab.schedules.plan import Plan
from illava_lab.trace.trace import Trace

_MARK = "_illava_attached"


def is_attached(model: nn.Module) -> bool:
    """Whether a strategy is attached to this model right now."""
    mark: Changes | None = vars(describe(model).base).get(_MARK)
    return mark is not None and not mark.attachment.closed


@block
def attach(
    model: nn.Module,
    strategy: str | Strategy | type[Strategy],
    schedule: Plan | None = None,
    *,
    positions: Positions = "original",
    graphs: bool = False,
) -> Iterator[Trace]:
    """Reduce visual tokens in everything that runs the model inside the `with` block, `forward` and `generate` alike.

    What decides about a reduction is the prompt: not what was drafted or generated behind it.

    A model carries one strategy at a time. Another thread that enters such a block, or asks a `Lab` of this model,
    waits until this one is left; in the same thread it is refused, in another asyncio task too. What runs the model by
    hand, `model(...)` or `model.generate(...)`, is reduced while a block is open, whichever thread or task it is in.

    Args:
        model: an unmodified transformers model of a supported family, in eval mode; its inner model and a PEFT wrapper
            around it will do.
        strategy: a registered name, a Strategy class or an instance.
        schedule: which layers reduce, and to how many; None reduces nowhere, and refuses nothing that the model takes.
        positions: "original" keeps the survivors' position ids; "packed" renumbers them without gaps (not for models
            with positions on several axes, such as Qwen2-VL).
        graphs: on CUDA, run the tower, the prefill and decoding steps as captured graphs: the same answers to rounding,
            without what the host needs for every operation. The first call of a shape runs plainly, the second
            captures, those after it are fast; see `illava_lab.hooks.graphs`. Elsewhere a warning says that it changes
            nothing.

    Yields:
        The Trace, which shows the last prefill.

    Raises:
        LabError: before anything is changed, if model, strategy, schedule and positions do not fit each other, or a
            strategy is attached already. On leaving, also by an exception from inside or an interrupt at whatever
            moment, the model is exactly what it was.
    """
    strategy, schedule = make_strategy(strategy), Plan() if schedule is None else schedule
    if not isinstance(schedule, Plan):
        raise LabError(f"schedule must be a Schedule, got {schedule!r}")
    anatomy, model = describe(model), unwrap(model)
    schedule.check(anatomy, strategy)
    one_of("positions", positions, ("original", "packed"))
    if positions == "packed" and anatomy.cells is not None:
        raise LabError('positions="packed" is not defined for positions of time, row and column; allowed: "original"')
    if model.training and schedule.reduces:
        raise LabError("the model is in training mode; call model.eval() first")
    if not isinstance(graphs, bool):
        raise LabError(f"graphs must be True or False, got {graphs!r}")
    captured = graphs_of(anatomy) if graphs else None
    attachment = Attachment(anatomy, strategy, schedule, positions, Trace(anatomy.cls_tokens), captured)
    with one_at_a_time(anatomy.base):
        changes = Changes(attachment)
        with undone(lambda: _restore(changes, attachment)):
            _mark(changes, attachment)
            _install(changes, attachment, model)
            yield attachment.trace


def _mark(changes: Changes, attachment: Attachment) -> None:
    """Say on the module that every wrapper runs that a strategy is attached."""
    found: Changes | None = vars(attachment.anatomy.base).get(_MARK)
    if found is not None and found.attachment.closed:  # several interrupts kept it from being taken back
        _restore(found, found.attachment)
    elif found is not None:
        raise LabError("this model already has a strategy attached; describe both stages in one schedule")
    vars(attachment.anatomy.base)[_MARK] = changes


def _install(changes: Changes, attachment: Attachment, model: nn.Module) -> None:
    for medium in attachment.anatomy.media:
        watch(changes, attachment, medium, _connector(attachment, medium))
    if attachment.schedule.reduces or attachment.graphs is not None:
        anatomy = attachment.anatomy
        rows: Any = UnevenRows if attachment.strategy.own_count else Rows
        form: Any = PackedCells if anatomy.cells else ShuffledCells if anatomy.shuffle > 1 else rows
        Tower(attachment, form).install(changes)
        LanguageModel(attachment).install(changes)
    Watch(attachment, model).install(changes)


def _connector(attachment: Attachment, medium: Medium) -> Connector:
    if attachment.anatomy.cells is not None:
        return Merged(attachment, medium)
    if attachment.anatomy.media[medium].pack is None:
        return Plain(attachment)
    return Anyres(attachment) if medium == "image" else Frames(attachment)


def _restore(changes: Changes, attachment: Attachment) -> None:
    attachment.closed = True
    changes.undo()
    if vars(attachment.anatomy.base).get(_MARK) is changes:
        vars(attachment.anatomy.base).pop(_MARK)
