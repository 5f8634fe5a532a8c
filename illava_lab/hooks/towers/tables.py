"""What a packed tower works out from the sizes of its pictures, made ahead on the host.

Left alone, such a tower reads the sizes from the device, and waits for it. Where the sequences of its attention begin
and end stays on the host, as numbers: the tower cuts its states there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from illava_lab.hooks.compat import vision_utils


def tables_of(tower: Any, grids: Tensor, device: torch.device) -> dict[str, Any]:
    """Arguments of a packed tower.

    Args:
        grids: (images, 3) long on the host: time, height and width of each in patches.
    """
    side = tower.spatial_merge_size
    out = {"position_ids": vision_utils.get_vision_position_ids(grids, side).to(device)}
    out |= _bounds("seqlen", tower, vision_utils.get_vision_cu_seqlens(grids), device)
    if hasattr(tower, "window_size"):
        order, bounds = vision_utils.get_vision_window_index(grids, side, tower.window_size, tower.patch_size)
        out |= {"window_index": order.to(device), **_bounds("window_seqlen", tower, bounds, device)}
    if hasattr(tower, "interpolation_mode"):
        taps, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grids, num_grid_per_side=tower.num_grid_per_side, mode=tower.interpolation_mode,
            align_corners=tower.interpolation_align_corners, spatial_merge_size=side,
        )  # fmt: skip
        out |= {"interp_indices": taps.to(device), "interp_weights": weights.to(device)}
    return out


def _bounds(name: str, tower: Any, bounds: Tensor, device: torch.device) -> dict[str, Any]:
    """The boundaries, and the longest sequence between two of them."""
    if str(tower.config._attn_implementation) == "sdpa":
        return {f"cu_{name}s": bounds.numpy()}
    return {f"cu_{name}s": bounds.to(device), f"max_{name}": int(bounds.diff().max())}


def on_device(bounds: Tensor | np.ndarray, device: torch.device) -> Tensor:
    """(R + 1,) long, boundaries that a layer was called with."""
    if isinstance(bounds, Tensor):
        return bounds.long()
    return torch.from_numpy(bounds.astype(np.int64)).to(device, non_blocking=True)
