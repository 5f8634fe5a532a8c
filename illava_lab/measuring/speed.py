"""Wall times, side by side in rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import timer

from illava_lab.blocks import inference_mode, undone
from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.hooks.changes import take_hooks
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import check_count
from illava_lab.session.prompt import Inputs, prefill

Configuration = tuple[Strategy, Schedule] | None  # None is the bare model, with nothing attached


STAGES = ("encoder", "projector", "llm", "rest")


@dataclass
class Speed:
    """Wall times of one configuration, one entry per round.

    Attributes:
        prefill: seconds for the batch.
        decode: seconds per new token for the batch.
    """

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


class Ratio(NamedTuple):
    """A time as a multiple of another: median over the rounds, and the range of the middle half of them."""

    value: float
    low: float
    high: float


def ratio(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Compare times that were taken in the same rounds. Each is divided by its neighbour, so slow drifts cancel.

    Raises:
        LabError: no times, or not equally many.
    """
    if len(times) != len(baseline) or not len(times):
        raise LabError(f"times and baseline must hold equally many rounds, got {len(times)} and {len(baseline)}")
    value, low, high = np.quantile(np.divide(times, baseline), (0.5, 0.25, 0.75))
    return Ratio(float(value), float(low), float(high))


def speeds(
    model: nn.Module,
    inputs: Inputs,
    configurations: Sequence[Configuration],
    *,
    rounds: int = 5,
    new_tokens: int = 8,
    done: Callable[[int], object] | None = None,
) -> list[Speed | Exception]:
    """Time configurations side by side: in each round every one runs once, after one round of warm-up.

    Rounds go forth and back, so that none of them always comes after the same other.

    Args:
        inputs: of a batch; a whole one, because a single small prompt measures mostly the overhead of calls.
        new_tokens: decoding steps per round.
        done: called with 1 after each configuration of each round, for a progress bar.

    Returns:
        For each configuration its times, or the exception that it raised.

    Raises:
        LabError: rounds or new_tokens are no whole numbers of at least 1.
    """
    rounds, new_tokens = check_count("rounds", rounds), check_count("new_tokens", new_tokens)
    out: list[Speed | Exception] = [Speed() for _ in configurations]
    for round_number in range(rounds + 1):
        order = range(len(configurations))
        for index in order if round_number % 2 else reversed(order):
            speed = out[index]
            if isinstance(speed, Speed):
                try:
                    seconds = _run(model, inputs, configurations[index], new_tokens)
                except Exception as error:  # a stranger's strategy may fail in any way; the others go on
                    out[index] = _released(error)
                else:
                    if round_number > 0:
                        speed.prefill.append(seconds[0])
                        speed.decode.append(seconds[1])
            if done is not None:
                done(1)
    return out


def attached(model: nn.Module, configuration: Configuration) -> AbstractContextManager:
    """`attach`, or nothing where the bare model is meant; one thread after the other."""
    return one_at_a_time(model) if configuration is None else attach(model, *configuration)


def _run(model: nn.Module, inputs: Inputs, configuration: Configuration, new_tokens: int) -> tuple[float, float]:
    """Seconds of one prefill, and of one decoding step after it."""
    mask = inputs["attention_mask"]
    with inference_mode(), attached(model, configuration):
        start = timer()  # waits for the accelerator before it reads the clock
        output = prefill(model, inputs)
        middle = timer()
        # Qwen-VL makes positions for the whole mask, not for the new token; these are what `generate` gives.
        moved = getattr(model.model, "rope_deltas", None)
        for _ in range(new_tokens):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = {} if moved is None else {"position_ids": mask.sum(1, keepdim=True) - 1 + moved}
            output = model(
                input_ids=output.logits[:, -1:].argmax(-1),
                attention_mask=mask,
                past_key_values=output.past_key_values,
                use_cache=True,
                **positions,
            )
        end = timer()
    return middle - start, (end - middle) / new_tokens


def _released(error: Exception) -> Exception:
    """The same, without the frames where it was raised: they would keep the tensors of a run that was out of memory."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


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
