"""One call's time: until it returns, until the device is done, and what the device worked."""

from __future__ import annotations

from collections.abc import Callable
from math import nan
from time import perf_counter
from typing import NamedTuple, TypeVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer

T = TypeVar("T")


class Span(NamedTuple):
    """Seconds of one call.

    Attributes:
        wall: until an accelerator has done all of it.
        host: until the call returned, which does not wait for an accelerator unless the call itself does.
        device: on CUDA, between two events around it: from its first operation to its last, gaps included; NaN
            elsewhere.
    """

    wall: float
    host: float
    device: float

    def part(self, of: int) -> Span:
        """One of several equal parts."""
        return Span(*(seconds / of for seconds in self))


NOTHING = Span(nan, nan, nan)


def timed(run: Callable[[], T], device: torch.device) -> tuple[T, Span]:
    """What a call returns, and how long it took; nothing that was asked of an accelerator before is in it."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
    start = timer()  # waits for an accelerator before it reads the clock
    for event in events[:1]:
        event.record()
    out = run()
    for event in events[1:]:
        event.record()
    returned = perf_counter()
    end = timer()
    return out, Span(end - start, returned - start, events[0].elapsed_time(events[1]) / 1e3 if events else nan)


def busy(run: Callable[[], object], device: torch.device) -> float:
    """Seconds that a CUDA device works on a call, the gaps in which it waits for the host left out; NaN elsewhere."""
    if device.type != "cuda":
        return nan
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize(device)
    kernels = [event for event in seen.key_averages() if event.device_type == DeviceType.CUDA]  # others repeat these
    return sum(event.self_device_time_total for event in kernels) / 1e6 or nan
