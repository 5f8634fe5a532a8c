"""Statistics of cells: blocks of patches that a pixel shuffle makes one visual token of (InternVL, SmolVLM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from illava_lab.sites.attention import PATCH_STATISTICS, AttentionSite


@dataclass(eq=False)
class ShuffledSite:
    """What a strategy can ask about CLS and cells: an `AttentionSite` of single patches, and where these are in it.

    Attributes:
        at: (rows, CLS + n, K) long, the places in the sequence of CLS (K times) and of the K patches of each cell.
    """

    patches: AttentionSite
    at: Tensor

    def statistic(self, name: str) -> Tensor:
        """One of `illava_lab.method.STATISTICS`, the mean over the patches of each cell where it is not of patches.

        Raises:
            LabError: this site does not have it.
        """
        value = at_cells(self.patches.statistic(name), self.at)
        return value[..., 0] if name in PATCH_STATISTICS else value.mean(2)


def at_cells(x: Tensor, at: Tensor) -> Tensor:
    """(rows, S, ...) of a sequence -> (rows, CLS + n, K, ...) at the places `at`."""
    return x[torch.arange(len(x), device=x.device, dtype=torch.long)[:, None, None], at]


def cell_places(grid: tuple[int, int], side: int, cls_tokens: int, device: torch.device) -> Tensor:
    """(CLS + n, K) long: where CLS (K times) and the K patches of each cell are in a sequence in raster order.

    Args:
        grid: (height, width) in cells, side: patches along the side of a cell. Patches of a cell in raster order, which
            is the order of channels that the pixel shuffle makes.
        cls_tokens: 1 where the sequence begins with CLS, else 0.
    """
    lengths = (torch.arange(n, device=device, dtype=torch.long) for n in (*grid, side, side))
    row, column, down, across = torch.meshgrid(*lengths, indexing="ij")
    place = cls_tokens + (row * side + down) * grid[1] * side + column * side + across
    return torch.cat([place.new_zeros(cls_tokens, side**2), place.view(-1, side**2)])
