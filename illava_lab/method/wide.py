"""The dtype to compute in."""

import torch


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64. Not `torch.promote_types`, which is dispatched like any operation."""
    return torch.float64 if dtype == torch.float64 else torch.float32
