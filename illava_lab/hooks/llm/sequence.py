"""Sequences that become shorter: where each slot comes from, and tensors gathered by that."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def compact(keep: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Where each slot of a shorter sequence comes from: survivors keep their order and sit at the right end.

    Args:
        keep: (B, L) bool; length: the largest number of survivors in a row.

    Returns:
        (B, length) long indices and (B, length) bool, False at fill slots of rows with fewer survivors.
    """
    order = keep.to(torch.int8).argsort(dim=1, stable=True)[:, keep.shape[1] - length :]
    return order, keep.gather(1, order)


def gather_sequence(x: Tensor, index: Tensor, dim: int) -> Tensor:
    """Index the sequence axis `dim` of x by (B, L); the axis before it is the batch, and may be 1 (shared)."""
    dim %= x.dim()
    view = [1] * x.dim()
    view[dim - 1], view[dim] = index.shape
    before = list(x.shape)
    before[dim - 1] = index.shape[0]
    after = [*before]
    after[dim] = index.shape[1]
    return x.expand(before).gather(dim, index.view(view).expand(after))


def upload(values: Any, device: torch.device) -> Tensor:
    """Whole numbers or booleans known on the host, as one tensor; a list of arrays of numbers is joined."""
    if isinstance(values, list):
        values = np.concatenate([[], *values])
    if values.dtype != bool:
        values = values.astype(np.int64)
    # To wait for the copy would be to wait for all that the device has still to do.
    return torch.from_numpy(values).to(device, non_blocking=True)


def in_order(parts: list[Tensor], images: list[int], counts: np.ndarray) -> Tensor:
    """Join what several groups have for each of their images, image after image; `images` says in whose order."""
    joined = torch.cat(parts)
    if images == sorted(images):
        return joined
    first = dict(zip(images, np.cumsum([0, *counts[images]]), strict=False))
    return joined[upload([np.arange(first[i], first[i] + counts[i]) for i in sorted(images)], joined.device)]
