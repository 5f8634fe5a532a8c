"""Rows of a batch, counted."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from illava_lab.method.host_made import host_made


@host_made
def _rows(count: int) -> tuple[np.ndarray]:
    return (np.arange(count)[:, None],)


def row_index(like: Tensor) -> Tensor:
    """(B, 1) long, 0 to B-1, for x (B, N, ...): ``x[row_index(x), index]`` are its rows by index (B, M)."""
    return _rows(like, len(like))[0]
