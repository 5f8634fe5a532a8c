"""Reducing visual tokens inside the vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

These towers pack the patches of all images, and of all temporal slices of all videos, into one sequence (S, C) without
a batch axis; `cu_seqlens` says where one attention ends and the next begins. The patch merger at the end makes one
token for the LLM from each *cell*, four consecutive patches that are a 2x2 block of the image (28 pixels wide; 32 in
Qwen3-VL). So:

- a reduction acts on whole cells: a strategy sees one token per cell, whose hidden state and statistics are the means
  over its four patches, and its map is applied to the first, second, third and fourth patches of the cells alike;
- every image and every temporal slice of a video is reduced on its own, those of equal size in one batch;
- cells come in raster order, whatever the order in the packed sequence (Qwen2.5-VL sorts them by windows); what is
  left keeps its packed order, so that windows stay together, and windows that lost all their cells disappear;
- attention statistics are those of the attention that the layer has. In a layer with windows a query attends within
  its window only: attention received is the mean over all queries of the image, zero for those of other windows, so
  that cells of small windows at the edge are not favoured; the log-sum-exp of a query is over its window;
- keys are unrotated, as in the other encoders;
- features that Qwen3-VL takes from layers in between (deepstack) are those that survivors had there, in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.tap import tap
from illava_lab.hooks.towers.rows import RowsTower
from illava_lab.method.ask import ask
from illava_lab.method.keep import kept
from illava_lab.method.tokens import Tokens
from illava_lab.models.cells import cell_layout
from illava_lab.models.families import Cells
from illava_lab.models.layout import Medium
from illava_lab.sites.packed import CellSite, PackedAttention, window_of_cells
from illava_lab.trace.step import Step
from illava_lab.trace.survivors import EncodedImage


@dataclass(eq=False)
class Frames:
    """Images, or temporal slices of videos, of one size; F of them with n cells each.

    Attributes:
        rows: which each of them is, counted over the whole call of the tower.
        grid: (height, width) in cells.
        first: (F, 1) long, cells of the call before each of them.
        at: (F, n) long, where each cell is in the packed sequence, counted in cells.
        place: (F, n) long, the cell of the grid (raster order) in whose place each stands.
        size: (F, n) float, how many cells each stands for.
    """

    rows: list[int]
    grid: tuple[int, int]
    first: Tensor
    at: Tensor
    place: Tensor
    size: Tensor


def packed_frames(grids: list[list[int]], merge: int, window: int | None, device: torch.device) -> list[Frames]:
    """The frames of one call of the tower, before any reduction.

    Args:
        grids: (time, height, width) in patches of each image or video, as in `image_grid_thw`.
        merge: patches along the side of a cell.
        window: cells along the side of a window, by which the tower sorts; None where it sorts by rows.
    """
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    row = start = 0
    for time, height, width in grids:
        grid = (height // merge, width // merge)
        for _ in range(time):
            members.setdefault(grid, []).append((row, start))
            row, start = row + 1, start + grid[0] * grid[1]
    out = []
    for grid, frames in members.items():
        first = torch.tensor([start for _, start in frames], device=device)[:, None]
        # Window by window: windows, and the cells within each, in raster order.
        at = first + window_of_cells(grid, window or max(grid), device).flatten().argsort(stable=True).argsort()
        place = torch.arange(at.shape[1], device=device).expand(at.shape)
        out.append(Frames([row for row, _ in frames], grid, first, at, place, torch.ones(at.shape, device=device)))
    return out


class PackedTower(RowsTower):
    """The encoder half of an attachment, for packed towers. Its state describes the last call of the tower.

    Attributes:
        frames: the images and temporal slices, in batches of equal size.
    """

    frames: list[Frames]
    _grids: list[list[int]]  # (time, height, width) of each image or video
    _cells: Tensor  # (G,) the cells that are left, by their number in the unreduced packed sequence
    _total: int  # G before any reduction
    _taps: list[tuple[Tensor, Tensor]]  # queries and keys of the current layer, one pair for each call of its kernel
    _passed: int  # patches of the current layer that its kernel has seen
    _scaling: float
    _layer: dict[str, Any]  # what the current layer was called with
    _shortened: dict[int, tuple[Tensor, Tensor]]  # cu_seqlens by identity, and what is left of them

    @property
    def _family(self) -> Cells:
        assert self.anatomy.cells is not None
        return self.anatomy.cells

    @property
    def _patches(self) -> int:
        return self._family.side**2

    # ---- installing
    def install(self, undo: ExitStack) -> None:
        """Hook the tower; `undo` takes everything back."""
        tower = self.anatomy.tower
        if not self.plan:
            return
        if self.strategy.proportional_attention and "flash" in str(tower.config._attn_implementation):
            raise LabError(
                f"the proportional attention of {self.strategy.name!r} needs sdpa or eager attention in the tower"
            )
        block: Any
        for index, block in enumerate(self.anatomy.encoder_layers):
            if index in self.plan:
                self._install_layer(undo, index)
            elif self.strategy.proportional_attention and index > min(self.plan):
                undo.enter_context(tap(block.attn, lambda *seen: None, self._mask))
            undo.callback(block.register_forward_pre_hook(self._enter_layer, with_kwargs=True, prepend=True).remove)
        for merger in (self.anatomy.projector, *getattr(tower, "deepstack_merger_list", ())):
            undo.callback(merger.register_forward_hook(self._restore_cells, prepend=True).remove)
        undo.callback(tower.register_forward_hook(self._leave, prepend=True).remove)

    # ---- one call of the tower
    def _start(self, tower: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        grids: Tensor = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        self._grids, cells = grids.tolist(), self._family
        self.frames = packed_frames(self._grids, cells.side, cells.window, grids.device)
        self._total = sum(frames.at.numel() for frames in self.frames)
        self._cells = torch.arange(self._total, device=grids.device)
        self.steps, self._shortened = [], {}

    def _enter_layer(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Give a layer the attention boundaries and rotary tables of what is left."""
        if len(self._cells) < self._total:
            index = self._with_patches(self._cells)
            rotary = tuple(table[index] for table in kwargs["position_embeddings"])
            kwargs = {**kwargs, "cu_seqlens": self._boundaries(kwargs["cu_seqlens"]), "position_embeddings": rotary}
        self._taps, self._passed, self._layer = [], 0, kwargs
        return args, kwargs

    def _boundaries(self, cu_seqlens: Tensor) -> Tensor:
        """The boundaries that are left; `max_seqlen` may stay, an upper bound is all that kernels need."""
        if id(cu_seqlens) not in self._shortened:
            left = torch.searchsorted(self._cells, cu_seqlens // self._patches) * self._patches
            # The unreduced tensor is kept with the answer, so that its identity stays its own.
            self._shortened[id(cu_seqlens)] = cu_seqlens, left.unique_consecutive().to(cu_seqlens.dtype)
        return self._shortened[id(cu_seqlens)][1]

    def _with_patches(self, cells: Tensor) -> Tensor:
        """(...,) cells -> (..., 4) patches, flat along the last axis."""
        patch = torch.arange(self._patches, device=cells.device)
        return (cells[..., None] * self._patches + patch).flatten(-2)

    def _observe(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> None:
        self._taps.append((query[0], key[0]))
        self._scaling = scaling

    def _reduce(self, index: int, hidden: Tensor) -> Tensor:
        cells = hidden.view(-1, self._patches * hidden.shape[1])
        attention = PackedAttention(
            self._taps,
            self._layer["position_embeddings"],
            self._scaling,
            self._layer["cu_seqlens"].long(),
            [self._with_patches(frames.at) for frames in self.frames],
            self._log_size(),
            self._patches,
        )
        self._taps = []
        out, survivors = cells, []
        for frames in self.frames:
            rows = cells[frames.at]  # (F, n, 4C)
            tokens = Tokens(
                "encoder",
                rows.unflatten(2, (self._patches, -1)).mean(2),
                layer=index,
                size=frames.size,
                position=frames.place,
                grid=frames.grid,
                site=CellSite(attention, frames.at),
            )
            reduction = ask(self.strategy, tokens, kept(self.plan[index], tokens.count, f"encoder layer {index}"))
            self.steps.append(Step("encoder", index, frames.rows, reduction, tokens.count, reduction.slots))
            frames.at = frames.at.gather(1, reduction.anchor)
            frames.place = frames.place.gather(1, reduction.anchor)
            frames.size = reduction.sizes(frames.size)
            out = out.index_copy(0, frames.at.flatten(), reduction.apply(rows).flatten(0, 1))
            survivors.append(frames.at.flatten())
        left = torch.cat(survivors).sort().values
        self._cells, self._shortened = self._cells[left], {}
        for frames in self.frames:
            frames.at = torch.searchsorted(left, frames.at)
        return out[left].view(-1, hidden.shape[1])

    # ---- proportional attention
    def _log_size(self) -> Tensor | None:
        """(S,) log of the size of each patch's cell, where proportional attention is asked for."""
        if not self.strategy.proportional_attention or len(self._cells) == self._total:
            return None
        out = self.frames[0].size.new_zeros(len(self._cells))
        for frames in self.frames:
            out[frames.at] = frames.size.log()
        return out.repeat_interleave(self._patches)

    def _mask(self, key: Tensor, mask: Tensor | None) -> Tensor | None:
        """For the next call of the current layer's kernel, which sees `key` (1, H, L, d)."""
        bias = self._log_size()
        if bias is None:
            return mask
        first, self._passed = self._passed, self._passed + key.shape[2]
        return bias[first : self._passed].to(key.dtype)[None, None, None]

    # ---- holes
    def _restore_cells(self, merger: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return out.new_full((self._total, out.shape[1]), torch.nan).index_copy(0, self._cells, out)

    def _leave(self, tower: nn.Module, args: tuple, out: Any) -> Any:
        """Holes in what the tower returns; hidden states of single layers keep the lengths of their layers."""
        if isinstance(out, tuple):
            raise LabError(
                "the vision tower returned a tuple; call it with return_dict=True while a strategy is attached"
            )
        short = out.last_hidden_state
        full = short.new_full((self._total * self._patches, short.shape[1]), torch.nan)
        out["last_hidden_state"] = full.index_copy(0, self._with_patches(self._cells), short)
        return out

    # ---- from the encoder's rows to placeholders
    def _encode(self, medium: Medium, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around the method that encodes images or videos: what it leaves becomes `visuals`."""
        others = dict(self.visuals)  # Qwen3-VL encodes a video by its method for images
        out = original(*args, **kwargs)
        size = torch.zeros(self._total, device=self._cells.device)
        for frames in self.frames:
            size[frames.first + frames.place] = frames.size
        self.visuals, row = {**others, medium: []}, 0
        lengths = [time * height * width // self._patches for time, height, width in self._grids]
        for grid, own in zip(self._grids, size.split(lengths), strict=True):
            layout = self._layout(tuple(grid), partial(cell_layout, grid, self._family.side))
            visual = EncodedImage(layout, (own > 0).float()[:, None], own, range(row, row + grid[0]), self.steps)
            self.visuals[medium].append(visual)
            row += grid[0]
        return out
