"""Rows of a batch, counted."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from illava_lab.method.host_made import host_made


@host_made
def _rows(count: int, axes: int) -> tuple[np.ndarray]:
    return (np.arange(count).reshape(-1, *[1] * axes),)


def row_index(like: Tensor, axes: int = 1) -> Tensor:
    """(B, 1) long, 0 to B-1, for x (B, N, ...): ``x[row_index(x), index]`` are its rows by index (B, M).

    Args:
        axes: of the index, behind the first: 2 gives (B, 1, 1), for an index (B, M, K).
    """
    return _rows(like, len(like), axes)[0]
