"""The largest batch that there is memory for."""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import torch
from torch import Tensor, nn

from illava_lab.measuring.speed import Configuration, attached
from illava_lab.session.prompt import Inputs, prefill

FINEST = 16  # batches are told apart to this part of themselves


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest whole number up to `most` for which `fits` holds: doubled while it does, then bisected.

    Above 16 it is found to a sixteenth, and is one that was tried. 0 if not even 1 fits.
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > max(1, low // FINEST):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def largest_batch(model: nn.Module, single: Inputs, configuration: Configuration, most: int) -> float:
    """The most copies of a prompt whose prefill fits on the CUDA device at once, up to `most`; NaN on other devices.

    Graphs change nothing in it: a batch that leaves them no room runs without.

    Args:
        single: of one prompt.
    """
    device = single["input_ids"].device
    if device.type != "cuda":
        return nan

    def fits(batch: int) -> bool:
        try:
            with attached(model, configuration):
                prefill(model, _copies(single, batch))
                torch.cuda.synchronize(device)
        except torch.OutOfMemoryError:
            return False
        finally:
            torch.cuda.empty_cache()
        return True

    return largest_that_fits(fits, most)


def _copies(single: Inputs, batch: int) -> Inputs:
    def copies(value: Tensor) -> Tensor:
        return value.repeat(batch, *[1] * (value.dim() - 1))

    return {name: copies(value) for name, value in single.items()}
