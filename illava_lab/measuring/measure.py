"""What a reduction saves: visual tokens, floating-point operations, cache, memory and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode

from illava_lab.hooks.attach import attach
from illava_lab.measuring.live_bytes import LiveBytes
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.models.layout import Layout
from illava_lab.schedules.schedule import Schedule

Inputs = dict[str, Tensor]
Configuration = tuple[Strategy, Schedule] | None  # None is the bare model, with nothing attached
STAGES = ("encoder", "projector", "llm", "rest")


@dataclass(frozen=True)
class Cost:
    """What one prompt costs until its first new token.

    Attributes:
        tokens_encoder, tokens_llm: mean over the layers of the visual tokens (of one image) that enter a layer.
        tokens: the same over the layers of both.
        prefill_flops: floating-point operations of encoder, projector and language model; a multiply-add counts two.
        cache_bytes: keys and values of all layers after the prefill.
        peak_bytes: memory above weights and inputs at the worst moment of the prefill.
    """

    tokens: float
    tokens_encoder: float
    tokens_llm: float
    prefill_flops: int
    cache_bytes: int
    peak_bytes: int


def cost(model: nn.Module, inputs: Inputs, strategy: Strategy, schedule: Schedule) -> Cost:
    """Everything about one prompt that does not need a clock.

    Args:
        inputs: of one prompt, as `Lab.inputs` makes them.
    """
    with attach(model, strategy, schedule) as trace:
        cache_bytes, peak_bytes = memory(model, inputs)
        return Cost(**mean_tokens(model, schedule, trace.layout()), prefill_flops=prefill_flops(model, inputs),
                    cache_bytes=cache_bytes, peak_bytes=peak_bytes)  # fmt: skip


@torch.inference_mode()
def prefill(model: nn.Module, inputs: Inputs) -> Any:
    """The forward pass that `generate` starts with: fills a cache, computes the logits of the last position only."""
    return model(**inputs, use_cache=True, logits_to_keep=1)


def prefill_flops(model: nn.Module, inputs: Inputs) -> int:
    """Floating-point operations of one prefill, under the attached strategy if there is one.

    Attention is counted in full, masked places too, by torch's plain kernel: its counter knows no formula for the
    fused one of the CPU and would take that for free.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        prefill(model, inputs)
    return counter.get_total_flops()


def memory(model: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """What one prefill needs: bytes of the keys and values that it leaves, and bytes above weights and inputs at its peak.

    On a CUDA device the allocator counts the peak; elsewhere it is that of the tensors alive (`LiveBytes`).
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        with LiveBytes() as live:
            return _cache_bytes(prefill(model, inputs)), live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    cache_bytes = _cache_bytes(prefill(model, inputs))
    torch.cuda.synchronize(device)
    return cache_bytes, torch.cuda.max_memory_allocated(device) - before


def _cache_bytes(output: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in output.past_key_values.layers)


class _Encoded(Exception):
    """The prompt has come to the language model, and that is enough."""


@torch.inference_mode()
def layouts(model: nn.Module, inputs: Inputs) -> list[Layout]:
    """What the first prompt shows: its images and videos in order. Runs the encoder, but not the language model."""

    def stop(*_: Any) -> None:
        raise _Encoded

    with attach(model, "none") as trace:
        handle = describe(model).language_model.register_forward_pre_hook(stop)
        try:
            prefill(model, inputs)
        except _Encoded:
            pass
        finally:
            handle.remove()
    return [trace.layout(image) for image in range(trace.images_per_row[0])] if trace.images_per_row else []


def text_tokens(model: nn.Module, inputs: Inputs) -> int:
    """Tokens of the first prompt that are not visual."""
    visual = torch.tensor(list(describe(model).placeholders.values()), device=inputs["input_ids"].device)
    return int((~torch.isin(inputs["input_ids"][0], visual)).sum())


def mean_tokens(model: nn.Module, schedule: Schedule, layout: Layout | None = None) -> dict[str, float]:
    """Mean visual tokens that enter a layer, for one image: `tokens`, `tokens_encoder`, `tokens_llm`.

    Args:
        layout: what the image is made of, where models differ in that; see `Schedule.tokens`.
    """
    counts = schedule.tokens(describe(model), layout)
    encoder, llm = counts["encoder"][:-1], counts["llm"][:-1]  # the last entry is what leaves the stage
    means = {"tokens": encoder + llm, "tokens_encoder": encoder, "tokens_llm": llm}
    return {name: float(np.mean(row)) for name, row in means.items()}


# ---------------------------------------------------------------------------------------------- time
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
    """Compare times that were taken in the same rounds. Each is divided by its neighbour, so slow drifts cancel."""
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
    """
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
    """`attach`, or nothing where the bare model is meant."""
    return nullcontext() if configuration is None else attach(model, *configuration)


@torch.inference_mode()
def _run(model: nn.Module, inputs: Inputs, configuration: Configuration, new_tokens: int) -> tuple[float, float]:
    """Seconds of one prefill, and of one decoding step after it."""
    mask = inputs["attention_mask"]
    with attached(model, configuration):
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
    """
    anatomy = describe(model)
    parts = {"encoder": anatomy.tower, "projector": anatomy.projector, "llm": anatomy.language_model}
    seen: dict[str, float] = {}

    def clock(name: str, sign: int) -> Callable[..., None]:
        def read(*_: Any) -> None:
            seen[name] = seen.get(name, 0.0) + sign * timer()

        return read

    taken = []
    with ExitStack() as undo:
        for name, part in parts.items():
            # Around the hooks of an attachment, whose work belongs to the part.
            undo.callback(part.register_forward_pre_hook(clock(name, -1), prepend=True).remove)
            undo.callback(part.register_forward_hook(clock(name, 1)).remove)
        if strategy is not None:
            undo.callback(vars(strategy).pop, "map")
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
