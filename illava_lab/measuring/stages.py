"""How the time of a prefill splits over the parts of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn
from torch.utils.benchmark import timer

from illava_lab.blocks import undone
from illava_lab.hooks.changes import take_hooks
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.session.asked import check_count
from illava_lab.session.prompt import Inputs, prefill

STAGES = ("encoder", "projector", "llm", "rest")


def stage_seconds(
    model: nn.Module, inputs: Inputs, rounds: int = 3, strategy: Strategy | None = None
) -> dict[str, float]:
    """How the time of one prefill splits, under the attached strategy if there is one: median seconds of `STAGES`.

    "encoder" is the vision tower, "llm" the layers of the language model, each with the reductions inside it; "rest" is
    what is between them and the logits. "choice", which is in those already, is what the attached `strategy` itself
    takes: its scores and its maps. Reading the clock at every border waits for the accelerator there, so the sum
    can be more than the prefill takes undisturbed (`speeds`).

    Raises:
        LabError: rounds is no whole number of at least 1.
    """
    rounds = check_count("rounds", rounds)
    anatomy = describe(model)
    parts = {"encoder": anatomy.tower, "projector": anatomy.projector, "llm": anatomy.language_model}
    seen: dict[str, float] = {}

    def clock(name: str, sign: int) -> Callable[..., None]:
        def read(*_: Any) -> None:
            seen[name] = seen.get(name, 0.0) + sign * timer()

        clocks.append(read)
        return read

    def undo() -> None:
        for part in parts.values():
            take_hooks(part, lambda hook: hook in clocks)
        if strategy is not None:
            vars(strategy).pop("map", None)

    taken: list[dict[str, float]] = []
    clocks: list[Callable[..., None]] = []
    with undone(undo):
        for name, part in parts.items():
            # Around the hooks of an attachment, whose work belongs to the part.
            part.register_forward_pre_hook(clock(name, -1), prepend=True)
            part.register_forward_hook(clock(name, 1))
        if strategy is not None:
            object.__setattr__(strategy, "map", _clocked(strategy.map, clock("choice", -1), clock("choice", 1)))
        for _ in range(rounds + 1):
            seen.clear()
            start = timer()
            prefill(model, inputs)
            total = timer() - start
            if anatomy.projector in anatomy.tower.modules():
                seen["encoder"] -= seen["projector"]
            seen["rest"] = total - sum(seen[name] for name in parts)
            taken.append(dict(seen))
    return {name: float(np.median([run.get(name, 0.0) for run in taken[1:]])) for name in (*STAGES, "choice")}


def _clocked(function: Callable, before: Callable, after: Callable) -> Callable:
    def run(*args: Any) -> Any:
        before()
        try:
            return function(*args)
        finally:
            after()

    return run
