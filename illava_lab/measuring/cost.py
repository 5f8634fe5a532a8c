"""What a prefill costs that needs no clock: visual tokens, floating-point operations, cache, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from illava_lab.hooks.attach import attach
from illava_lab.hooks.compat import cache_of
from illava_lab.measuring.live_bytes import LiveBytes
from illava_lab.method.blocks import block, undone
from illava_lab.method.host_made import forget_host_made
from illava_lab.method.modes import within
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.models.layout import Layout
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.prompt import Inputs, prefill


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
        return Cost(**mean_tokens(model, schedule, trace.layout()), prefill_flops=counted_flops(model, inputs),
                    cache_bytes=cache_bytes, peak_bytes=peak_bytes)  # fmt: skip


SDP = ("flash", "mem_efficient", "math", "cudnn")


@block
def _plain_attention() -> Iterator[None]:
    """Attention by torch's plain kernel; afterwards, also after an interrupt, the kernels that there were."""
    on = {name: getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in SDP}

    def undo() -> None:
        for name, was in on.items():
            getattr(torch.backends.cuda, f"enable_{name}_sdp")(was)

    with undone(undo), sdpa_kernel(SDPBackend.MATH):
        yield


def counted_flops(model: nn.Module, inputs: Inputs) -> int:
    """Floating-point operations of one prefill, under the attached strategy if there is one.

    Attention is counted in full, masked places too, by torch's plain kernel: its counter knows no formula for the
    fused one of the CPU and would take that for free.
    """
    with _plain_attention(), within(FlopCounterMode(display=False, custom_mapping=_of_experts())) as counter:
        prefill(model, inputs)
    return counter.get_total_flops()


def memory(model: nn.Module, inputs: Inputs) -> tuple[int, int]:
    """What one prefill needs: bytes of keys and values that it leaves, and bytes above weights and inputs at its peak.

    On a CUDA device the allocator counts the peak; elsewhere it is that of the tensors alive (`LiveBytes`).
    """
    device = next(model.parameters()).device
    forget_host_made()
    if device.type != "cuda":
        with within(LiveBytes()) as live:
            return _cache_bytes(prefill(model, inputs)), live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    cache_bytes = _cache_bytes(prefill(model, inputs))
    torch.cuda.synchronize(device)
    return cache_bytes, torch.cuda.max_memory_allocated(device) - before


def _of_experts() -> dict[Any, Any]:
    """What torch's counter does not know: the products of all experts at once, where there are such."""
    found = [getattr(torch.ops.aten, "_grouped_mm", None), getattr(torch.ops.transformers, "grouped_mm_fallback", None)]
    return {operation: _grouped for operation in found if operation is not None}


def _grouped(rows: Sequence[int], weights: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """FLOPs of rows (N, K) by weights (experts, K, M), each row by those of one expert; both are shapes."""
    return 2 * math.prod(rows) * weights[-1]


def _cache_bytes(output: Any) -> int:
    """Of keys and values, and of the states of layers with linear attention."""
    names = ("keys", "values", "conv_states", "recurrent_states")
    held = [getattr(layer, name, None) for layer in cache_of(output).layers for name in names]
    parts = [part for one in held for part in (one.values() if isinstance(one, dict) else [one])]
    return sum(part.nbytes for part in parts if part is not None)


def mean_tokens(model: nn.Module, schedule: Schedule, layout: Layout | None = None) -> dict[str, float]:
    """Mean visual tokens that enter a layer, for one image: `tokens`, `tokens_encoder`, `tokens_llm`.

    Args:
        layout: what the image is made of, where models differ in that; see `Schedule.tokens`.
    """
    counts = schedule.tokens(describe(model), layout)
    encoder, llm = counts["encoder"][:-1], counts["llm"][:-1]  # the last entry is what leaves the stage
    means = {"tokens": encoder + llm, "tokens_encoder": encoder, "tokens_llm": llm}
    return {name: float(np.mean(row)) for name, row in means.items()}
