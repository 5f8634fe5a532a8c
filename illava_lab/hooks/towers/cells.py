"""Reducing visual tokens inside the vision tower of InternVL, behind which a pixel shuffle joins patches.

The tower sees every tile of an image as one row of patches behind a CLS token. After it, the CLS token goes, and the
pixel shuffle stacks the channels of each *cell*, a block of 2x2 patches, which the projector makes one visual token of.
Were single patches removed, most cells would lose some of theirs, and none would be left as it was. So:

- a reduction acts on whole cells, as it does in Qwen's towers: a strategy sees one token per cell, whose hidden state
  and statistics are the means over its patches, and CLS; its map is applied to the first, second, third and fourth
  patches of the cells alike. The LLM gets the share of tokens that was asked for, and no patch has to be made up;
- positions, sizes, counts and holes are those of cells; every tile is reduced on its own;
- the sequence stays in raster order, CLS first, so that keeping everything changes nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.tap import tap
from illava_lab.hooks.towers.rows import RowsTower
from illava_lab.sites.cells import ShuffledSite, at_cells, cell_places


class CellsTower(RowsTower):
    """The encoder half of an attachment, for a tower with CLS and a pixel shuffle. `position` and `size` are those of
    cells; its state describes the last call of the tower."""

    _at: Tensor  # see `ShuffledSite`

    def install(self, undo: ExitStack) -> None:
        """Hook the tower; `undo` takes everything back."""
        kernel = str(self.anatomy.tower.config._attn_implementation)
        if self.plan and self.strategy.proportional_attention and "flash" in kernel:
            name = self.strategy.name
            raise LabError(f"the proportional attention of {name!r} needs sdpa or eager attention in the tower")
        super().install(undo)

    # ---- one call of the tower
    def _start(self, tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        pixels: Tensor = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        across, cell = self.anatomy.side
        if pixels.shape[-2:] != (across, across):
            height, width = pixels.shape[-2:]
            wanted = f"{across} x {across}"
            raise LabError(f"tiles of {height} x {width} pixels do not match the model's, which have {wanted}")
        changed = super()._start(tower, args, kwargs)
        if changed is not None:
            args, kwargs = changed
            pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        grid = (pixels.shape[-2] // cell, pixels.shape[-1] // cell)
        self._at = cell_places(grid, self.anatomy.shuffle, pixels.device).expand(len(pixels), -1, -1)
        return changed

    def _reduce(self, index: int, hidden: Tensor) -> Tensor:
        cells = at_cells(hidden, self._at)  # (rows, 1 + n, K, C)
        reduction = self._ask(index, cells.mean(2), ShuffledSite(self._site(hidden), self._at))
        left = reduction.apply(cells.flatten(2)).unflatten(2, cells.shape[2:])
        # Back to raster order, with CLS, which comes as often as a cell has patches, once.
        places, more = self._places(self.position), cells.shape[2] - 1
        order = places.flatten(1).argsort(dim=1, stable=True)
        self._at = (order.argsort(dim=1) - more).clamp_min(0).view(places.shape)
        return left.flatten(1, 2).gather(1, order[:, more:, None].expand(-1, -1, hidden.shape[2]))

    def _places(self, position: Tensor) -> Tensor:
        """(rows, 1 + m) cells, CLS as -1 -> (rows, 1 + m, K) where their patches are in the unreduced sequence."""
        return cell_places(self.anatomy.grid, self.anatomy.shuffle, position.device)[position + 1]

    # ---- proportional attention
    def _weigh_keys(self, undo: ExitStack, index: int) -> None:
        # A layer of this tower takes no mask; one that reduces is tapped already.
        if index not in self.plan:
            attention = getattr(self.anatomy.encoder_layers[index], self.anatomy.layer_parts.attention)
            undo.enter_context(tap(attention, lambda *seen: None, self._mask))

    def _mask(self, key: Tensor, mask: Tensor | None) -> Tensor | None:
        if not self.strategy.proportional_attention or all(step.after == step.before for step in self.steps):
            return mask
        log_size = self.size.log()[..., None].expand(self._at.shape)
        out = torch.zeros(key.shape[0], key.shape[2], device=key.device)
        out = out.scatter(1, self._at.flatten(1), log_size.flatten(1))
        return out[:, None, None].to(key.dtype)

    # ---- holes
    def _with_holes(self, hidden: Tensor | None, position: Tensor | None) -> Tensor | None:
        if hidden is None or position is None:
            return hidden
        per_cell = self.anatomy.shuffle**2
        place = self._places(position).flatten(1).sort(dim=1).values[:, per_cell - 1 :]
        full = hidden.new_full((len(hidden), 1 + self.anatomy.patches * per_cell, hidden.shape[2]), torch.nan)
        return full.scatter(1, place[..., None].expand_as(hidden), hidden)
