"""Wall times, side by side in rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.benchmark import timer

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.hooks.compat import CACHE, cache_of
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.measuring.by_hand import Prefill as ByHand
from illava_lab.measuring.clock import NOTHING, Span, timed
from illava_lab.method.blocks import inference_mode
from illava_lab.method.strategy import Strategy
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import check_count
from illava_lab.session.prompt import Inputs, prefill
from illava_lab.trace.trace import Trace

Configuration = tuple[Strategy, Schedule] | None  # None is the bare model, with nothing attached
WARM_UP = 2  # the first call of a shape runs plainly, the second is captured


@dataclass
class Speed:
    """Times of one configuration, one entry per round, in seconds.

    Attributes:
        prefill: for the batch.
        decode: per new token for the batch; NaN for a loop by hand, which has no decoding.
        spans: of the prefill, with the time of host and device apart.
        steps: the same per new token.
    """

    spans: list[Span] = field(default_factory=list)
    steps: list[Span] = field(default_factory=list)

    @property
    def prefill(self) -> list[float]:
        return [span.wall for span in self.spans]

    @property
    def decode(self) -> list[float]:
        return [span.wall for span in self.steps]


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
    configurations: Sequence[Configuration | ByHand],
    *,
    rounds: int = 5,
    new_tokens: int = 8,
    graphs: bool = False,
    done: Callable[[int], object] | None = None,
) -> list[Speed | Exception]:
    """Time configurations side by side: in each round every one runs once, after one round of warm-up.

    Rounds go forth and back, so that none of them always comes after the same other.

    Args:
        inputs: of a batch; a whole one, because a single small prompt measures mostly the overhead of calls.
        configurations: a strategy with its schedule, None for the bare model, or a loop by hand (`by_hand.prefill`).
        new_tokens: decoding steps per round.
        graphs: attach with captured graphs; what is captured is captured before the clock runs.
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
                    span, step = _run(model, inputs, configurations[index], new_tokens, graphs)
                except Exception as error:  # a stranger's strategy may fail in any way; the others go on
                    out[index] = _released(error)
                else:
                    if round_number > 0:
                        speed.spans.append(span)
                        speed.steps.append(step)
            if done is not None:
                done(1)
    return out


def attached(
    model: nn.Module, configuration: Configuration, graphs: bool = False
) -> AbstractContextManager[Trace | None]:
    """`attach`, or nothing where the bare model is meant; one thread after the other."""
    return one_at_a_time(model) if configuration is None else attach(model, *configuration, graphs=graphs)


def _run(
    model: nn.Module, inputs: Inputs, configuration: Configuration | ByHand, new_tokens: int, graphs: bool
) -> tuple[Span, Span]:
    """One prefill, and one decoding step after it."""
    device = inputs["input_ids"].device
    if callable(configuration):
        with inference_mode(), one_at_a_time(model):
            return timed(configuration, device)[1], NOTHING
    with inference_mode(), attached(model, configuration, graphs):
        _warm_up(model, inputs, configuration, graphs)
        output, span = timed(lambda: prefill(model, inputs), device)
        steps = decoding(model, inputs, output)
        _, taken = timed(lambda: _take(steps, new_tokens), device)
    return span, taken.part(new_tokens)


def decoding(model: Any, inputs: Inputs, output: Any) -> Iterator[Any]:
    """Greedy decoding steps after a prefill, without an end: the output of each.

    Args:
        output: of the prefill, whose cache grows.
    """
    mask = inputs["attention_mask"]
    # Qwen-VL makes positions for the whole mask, not for the new token; these are what `generate` gives.
    moved = getattr(model.model, "rope_deltas", None)
    while True:
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = {} if moved is None else {"position_ids": mask.sum(1, keepdim=True) - 1 + moved}
        output = model(
            input_ids=output.logits[:, -1:].argmax(-1),
            attention_mask=mask,
            **{CACHE: cache_of(output)},
            use_cache=True,
            **positions,
        )
        yield output


def _take(steps: Iterator[Any], count: int) -> None:
    for _ in range(count):
        next(steps)


def _warm_up(
    model: nn.Module, inputs: Inputs, configuration: Configuration, graphs: bool, steps: int = WARM_UP
) -> None:
    """Before the clock runs, let be captured what can be; a long answer needs larger buffers than a short one."""
    if graphs and configuration is not None:
        for _ in range(WARM_UP):
            _take(decoding(model, inputs, prefill(model, inputs)), steps)


def answer_seconds(
    model: nn.Module, inputs: Inputs, configuration: Configuration, lengths: Sequence[int], graphs: bool = False
) -> list[float]:
    """Seconds from the prompt to an answer of so many tokens, for each length: one run to the longest, with the clock
    read on the way. The prefill gives the first token.

    Args:
        lengths: of at least 1, in rising order.
    """
    out = []
    with inference_mode(), attached(model, configuration, graphs):
        _warm_up(model, inputs, configuration, graphs, max(WARM_UP, *lengths))
        start, there = timer(), 1
        steps = decoding(model, inputs, prefill(model, inputs))
        for length in lengths:
            _take(steps, length - there)
            there = length
            out.append(timer() - start)
    return out


def _released(error: Exception) -> Exception:
    """The same, without the frames where it was raised: they would keep the tensors of a run that was out of memory."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
