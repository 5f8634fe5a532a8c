"""What a reduction saves: visual tokens, floating-point operations, cache, memory and time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.benchmark import timer
from torch.utils.flop_counter import FlopCounterMode

from illava_lab.attach import attach
from illava_lab.families import describe
from illava_lab.packing import Layout
from illava_lab.schedule import Schedule
from illava_lab.strategy import Strategy

Inputs = dict[str, Tensor]
Configuration = tuple[Strategy, Schedule]


@dataclass(frozen=True)
class Cost:
    """What one prompt costs until its first new token.

    Attributes:
        tokens_encoder, tokens_llm: mean over the layers of the visual tokens (of one image) that enter a layer.
        tokens: the same over the layers of both.
        prefill_flops: floating-point operations of encoder, projector and language model; a multiply-add counts two.
        cache_bytes: keys and values of all layers after the prefill.
        peak_bytes: memory above weights and inputs on a CUDA device, NaN elsewhere.
    """

    tokens: float
    tokens_encoder: float
    tokens_llm: float
    prefill_flops: int
    cache_bytes: int
    peak_bytes: float


def cost(model: nn.Module, inputs: Inputs, strategy: Strategy, schedule: Schedule) -> Cost:
    """Everything about one prompt that does not need a clock.

    Args:
        inputs: of one prompt, as `Lab.inputs` makes them.
    """
    with attach(model, strategy, schedule) as trace:
        cache, peak = _peak(model, inputs)
        return Cost(**mean_tokens(model, schedule, trace.layout()), prefill_flops=prefill_flops(model, inputs),
                    cache_bytes=cache_bytes(cache), peak_bytes=peak)  # fmt: skip


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


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a transformers cache holds."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def mean_tokens(model: nn.Module, schedule: Schedule, layout: Layout | None = None) -> dict[str, float]:
    """Mean visual tokens that enter a layer, for one image: `tokens`, `tokens_encoder`, `tokens_llm`.

    Args:
        layout: what the image is made of, where models differ in that; see `Schedule.tokens`.
    """
    counts = schedule.tokens(describe(model), layout)
    encoder, llm = counts["encoder"][:-1], counts["llm"][:-1]  # the last entry is what leaves the stage
    means = {"tokens": encoder + llm, "tokens_encoder": encoder, "tokens_llm": llm}
    return {name: float(np.mean(row)) for name, row in means.items()}


def _peak(model: nn.Module, inputs: Inputs) -> tuple[Any, float]:
    """The cache after one prefill, and the bytes that the prefill needed at its peak (CUDA only)."""
    device = next(model.parameters()).device
    if device.type != "cuda":
        return prefill(model, inputs).past_key_values, float("nan")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    cache = prefill(model, inputs).past_key_values
    torch.cuda.synchronize(device)
    return cache, float(torch.cuda.max_memory_allocated(device) - before)


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

    Args:
        inputs: of a batch; a whole one, because a single small prompt measures mostly the overhead of calls.
        new_tokens: decoding steps per round.
        done: called with 1 after each configuration of each round, for a progress bar.

    Returns:
        For each configuration its times, or the exception that it raised.
    """
    out: list[Speed | Exception] = [Speed() for _ in configurations]
    for round_number in range(rounds + 1):
        for index, (strategy, schedule) in enumerate(configurations):
            speed = out[index]
            if isinstance(speed, Speed):
                try:
                    seconds = _run(model, inputs, strategy, schedule, new_tokens)
                except Exception as error:  # a stranger's strategy may fail in any way; the others go on
                    out[index] = error
                else:
                    if round_number > 0:
                        speed.prefill.append(seconds[0])
                        speed.decode.append(seconds[1])
            if done is not None:
                done(1)
    return out


@torch.inference_mode()
def _run(
    model: nn.Module, inputs: Inputs, strategy: Strategy, schedule: Schedule, new_tokens: int
) -> tuple[float, float]:
    """Seconds of one prefill, and of one decoding step after it."""
    mask = inputs["attention_mask"]
    with attach(model, strategy, schedule):
        start = timer()  # waits for the accelerator before it reads the clock
        output = prefill(model, inputs)
        middle = timer()
        for _ in range(new_tokens):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = model(
                input_ids=output.logits[:, -1:].argmax(-1),
                attention_mask=mask,
                past_key_values=output.past_key_values,
                use_cache=True,
            )
        end = timer()
    return middle - start, (end - middle) / new_tokens
