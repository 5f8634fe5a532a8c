"""Random features, and what counts as equal."""

from __future__ import annotations

import torch
from torch import Tensor


def features(count: int, shift: float, channels: int = 4) -> Tensor:
    """X(i, c; a) = sin(0.9 i + 1.7 c + 0.31 i c + a), float64: the generator of the worked cases."""
    i, c = torch.arange(count)[:, None].double(), torch.arange(channels)[None].double()
    return torch.sin(0.9 * i + 1.7 * c + 0.31 * i * c + shift)


def close(got: Tensor, want: list[float] | Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, torch.as_tensor(want, dtype=got.dtype), atol=tolerance, rtol=0)
