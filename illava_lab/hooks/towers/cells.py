"""The towers of InternVL and SmolVLM, behind which a pixel shuffle joins patches.

The tower sees every tile of an image as one row of patches, InternVL's behind a CLS token. After it, the CLS token
goes, and the pixel shuffle stacks the channels of each *cell*, a block of 2x2 patches (3x3 or 4x4 in SmolVLM), of which
the projector makes one visual token. Were single patches removed, most cells would lose some of theirs, and none would
be left as it was. So:

- a reduction acts on whole cells, as it does in Qwen's towers: a strategy sees one token per cell, whose hidden state
  and statistics are the means over its patches, and CLS; its map is applied to the first, second, third ... patches of
  the cells alike. The LLM gets the share of tokens that was asked for, and no patch has to be made up;
- places, sizes, counts and holes are those of cells; every tile is reduced on its own;
- the sequence stays in raster order, CLS first, so that keeping everything changes nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.towers.rows import ask_rows, known_survivors, shrink, with_holes, with_smaller
from illava_lab.sites.attention import AttentionSite, tokens_at
from illava_lab.sites.cells import ShuffledSite, at_cells, cell_places
from illava_lab.trace.step import Step
from illava_lab.trace.survivors import Survivors


class ShuffledCells:
    """One call of such a tower; see `Form`.

    Attributes:
        survivors: (rows, CLS + m) CLS, if there is one, and the cells that are left.
        at: (rows, CLS + m, K) long, where in the sequence CLS (K times) and the K patches of each cell are.
    """

    survivors: Survivors

    def __init__(self, attachment: Attachment, args: tuple, kwargs: dict[str, Any]) -> None:
        self.attachment, self.anatomy = attachment, attachment.anatomy
        pixels: Tensor = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        across, (height, width) = self.anatomy.side[0], pixels.shape[-2:]
        if (height, width) != (across, across):
            wanted = f"{across} x {across}"
            raise LabError(f"tiles of {height} x {width} pixels do not match the model's, which have {wanted}")
        shown: Tensor | None = kwargs.get("patch_attention_mask")
        if shown is not None and not bool(shown.all()):
            raise LabError("tiles with padding in them are not supported while the encoder is reduced")
        self.skip = self.anatomy.cls_tokens
        self.survivors = Survivors.everything(-self.skip, len(pixels), self.skip + self.anatomy.patches, pixels.device)
        self.at = self._cells(self.anatomy.grid, pixels.device).expand(len(pixels), -1, -1)
        self.steps: list[Step] = []
        self.states: Tensor | None = None
        self.nothing: Tensor | None = None
        self.noted: Tensor | None = None
        self._attention: tuple[Tensor, Tensor, Tensor, Tensor | None, float] | None = None

    def _places(self, place: Tensor) -> Tensor:
        """(rows, CLS + m) cells, CLS as -1 -> (rows, CLS + m, K) where their patches are in the unreduced sequence."""
        return self._cells(self.anatomy.grid, place.device)[place + self.skip]

    def _cells(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        return cell_places(grid, self.anatomy.shuffle, self.skip, device)

    # ---- the tower
    def enter_tower(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if self.attachment.schedule.image is None:
            return args, kwargs
        pixels: Tensor = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        smaller = shrink(self, pixels)
        cell = self.anatomy.side[1]
        grid = (smaller.shape[-2] // cell, smaller.shape[-1] // cell)
        self.at = self._cells(grid, pixels.device).expand(len(pixels), -1, -1)
        args, kwargs = with_smaller(smaller, args, kwargs)
        shown: Tensor | None = kwargs.get("patch_attention_mask")
        if shown is not None:  # such a tower spreads its positions over the patches that are seen
            height, width = (length * self.anatomy.shuffle for length in grid)
            kwargs = {**kwargs, "patch_attention_mask": shown[:, :height, :width].contiguous()}
            del kwargs["interpolate_pos_encoding"]
        return args, kwargs

    def leave_tower(self, out: Any) -> Any:
        """The pixel shuffle counts patches: what it is given has all of them, with holes."""
        self.survivors = self.survivors.at(self.survivors.place.argsort(dim=1))
        layer: int = getattr(self.anatomy.base.config, "vision_feature_layer", -1)
        if layer == -1:
            out["last_hidden_state"] = self._whole(out.last_hidden_state)
        else:
            states = list(out.hidden_states)
            states[layer] = self._whole(states[layer])
            out["hidden_states"] = tuple(states)
        return out

    def _whole(self, hidden: Tensor) -> Tensor:
        per_cell = self.anatomy.shuffle**2
        place = self._places(self.survivors.place).flatten(1).sort(dim=1).values[:, self.skip * (per_cell - 1) :]
        return with_holes(hidden, place, self.skip + self.anatomy.patches * per_cell, torch.nan)

    # ---- a layer
    def enter_layer(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs

    def seen(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        self._attention = query, key, value, mask, scaling

    def weigh(self, key: Tensor, mask: Tensor | None) -> Tensor | None:
        if all(step.after == step.before for step in self.steps):
            return mask
        log_size = self.survivors.size.log()[..., None].expand(self.at.shape)
        out = torch.zeros((key.shape[0], key.shape[2]), dtype=torch.float32, device=self.at.device)
        out = out.scatter(1, self.at.flatten(1), log_size.flatten(1))
        return out[:, None, None].to(key.device, key.dtype)

    def reduce(self, layer: int, hidden: Tensor) -> Tensor:
        assert self._attention is not None
        query, key, value, mask, scaling = self._attention
        self._attention = None
        at = self.at.to(hidden.device)
        cells = at_cells(hidden, at)  # (rows, CLS + n, K, C)
        site = AttentionSite(query, key, scaling, mask, has_cls=bool(self.skip), hidden=hidden, value=value)
        reduction = ask_rows(self, layer, cells.mean(2), ShuffledSite(site, at))
        if reduction is None:
            return hidden
        left = reduction.apply(cells.flatten(2)).unflatten(2, cells.shape[2:])
        # Back to raster order, with CLS, which comes as often as a cell has patches, once.
        places, more = self._places(self.survivors.place), self.skip * (cells.shape[2] - 1)
        order = places.flatten(1).argsort(dim=1, stable=True)
        self.at = (order.argsort(dim=1) - more).clamp_min(0).view(places.shape)
        return tokens_at(left.flatten(1, 2), order[:, more:])

    # ---- the projector
    def enter_projector(self, hidden: Tensor) -> Tensor:
        return tokens_at(hidden, self.patches.place.to(hidden.device))

    def leave_projector(self, out: Tensor) -> Tensor:
        return with_holes(out, self.patches.place, self.anatomy.patches, torch.nan)

    # ---- what is left
    def told(self) -> Any:
        return self.steps, self.survivors.place, self.survivors.size

    def tell(self, told: Any) -> None:
        self.steps, place, size = told
        self.survivors = known_survivors(place, size)

    @property
    def patches(self) -> Survivors:
        return self.survivors.behind(self.skip)

    counts: list[int] | None = None

    @property
    def kept(self) -> float:
        return (self.survivors.count - self.skip) / self.anatomy.patches
