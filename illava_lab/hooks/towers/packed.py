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
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.towers.rows import EncoderStage, ask
from illava_lab.method.strategy import Tokens
from illava_lab.models.layout import Layout, Medium, Visual
from illava_lab.schedules.schedule import kept
from illava_lab.sites.attention import AttentionSite, tap
from illava_lab.trace.trace import Step


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


def window_of_cells(grid: tuple[int, int], window: int, device: torch.device) -> Tensor:
    """(height, width) long, a number for the window that each cell of a frame lies in: they rise in raster order."""
    row = torch.arange(grid[0], device=device)[:, None] // window
    column = torch.arange(grid[1], device=device) // window
    return row * grid[1] + column


def cell_layout(grid: list[int], merge: int) -> Layout:
    """The placeholders of one image or video: one for each cell, slice after slice. Its patches are these cells.

    Args:
        grid: (time, height, width) in patches, merge: patches along the side of a cell.
    """
    time, height, width = grid[0], grid[1] // merge, grid[2] // merge
    row, column = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    boxes = torch.stack([column / width, row / height, (column + 1) / width, (row + 1) / height], dim=1)
    cells, one_grid = torch.arange(time * height * width), (height, width) if time == 1 else None
    return Layout((time, height, width), cells[:, None], torch.ones(len(cells), 1), one_grid, boxes.repeat(time, 1))


@dataclass(eq=False)
class PackedAttention:
    """The attention of one layer over a packed sequence of S patches. A statistic is computed once, for all of them.

    Attributes:
        parts: queries and keys (H, L, d), rotated, of consecutive stretches of the sequence.
        rotary: (cos, sin), (S, d) each.
        bounds: (R + 1,) long, where each of the R sequences that attend within themselves begins and ends.
        frames: (F, L) long for each size of frame: the patches of each, if these are the sequences (no windows).
        log_size: (S,) added to the logits of each key (proportional attention), or None.
        patches: how many patches are a cell.
    """

    parts: list[tuple[Tensor, Tensor]]
    rotary: tuple[Tensor, Tensor]
    scaling: float
    bounds: Tensor
    frames: list[Tensor]
    log_size: Tensor | None
    patches: int
    _known: dict[str, Tensor] = field(default_factory=dict)

    def per_cell(self, name: str) -> Tensor:
        """(G,) or (G, d): one statistic of all cells, the mean over their patches.

        Attention received comes as a sum over queries, not as their mean.
        """
        if name not in self._known:
            value = self._keys(name) if name in ("keys", "wide_keys") else self._attended(name)
            self._known[name] = value.view(-1, self.patches, *value.shape[1:]).mean(1)
        return self._known[name]

    def _keys(self, name: str) -> Tensor:
        cos, sin = (table.float() for table in self.rotary)
        key = self._joined[1].float()
        first, second = key.chunk(2, dim=-1)
        key = key * cos - torch.cat([-second, first], dim=-1) * sin  # the rotation backwards
        return key.mean(0) if name == "keys" else key.transpose(0, 1).flatten(1)

    @cached_property
    def _joined(self) -> tuple[Tensor, Tensor]:
        return tuple(torch.cat(stretches, dim=1) for stretches in zip(*self.parts, strict=True))

    def _sequences(self) -> list[tuple[Tensor, Tensor | None]]:
        """The sequences in batches: (R, L) long positions and (R, L) bool, False at padding, or None."""
        if len(self.bounds) - 1 == sum(len(frames) for frames in self.frames):
            return [(frames, None) for frames in self.frames]
        lengths = self.bounds.diff()[:, None]
        offset = torch.arange(int(lengths.max()), device=lengths.device)
        index = self.bounds[:-1, None] + offset
        return [(index.clamp_max(self.rotary[0].shape[0] - 1), offset < lengths)]

    def _attended(self, name: str) -> Tensor:
        out = torch.zeros(self.rotary[0].shape[0] + 1, device=self.bounds.device)  # one more, for padding
        for index, valid in self._sequences():
            query, key = (x[:, index].transpose(0, 1) for x in self._joined)
            mask = None if self.log_size is None else self.log_size[index]
            if valid is not None:
                mask = torch.zeros(index.shape, device=index.device) if mask is None else mask
                mask = mask.masked_fill(~valid, -torch.inf)
            site = AttentionSite(query, key, self.scaling, None if mask is None else mask[:, None, None], valid)
            value = site.statistic(name)
            if name == "attention_received":
                value = value * (index.shape[1] if valid is None else valid.sum(1, keepdim=True))
            out[index if valid is None else index.masked_fill(~valid, len(out) - 1)] = value
        return out[:-1]


@dataclass(eq=False)
class CellSite:
    """What a strategy can ask about the cells of some frames: an `AttentionSite` for a packed sequence."""

    attention: PackedAttention
    at: Tensor  # (F, n)

    def statistic(self, name: str) -> Tensor:
        """One of `illava_lab.method.strategy.STATISTICS`.

        Raises:
            LabError: this site does not have it.
        """
        value = self.attention.per_cell(name)[self.at]
        return value / (self.at.shape[1] * self.attention.patches) if name == "attention_received" else value


class PackedEncoderStage(EncoderStage):
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
    def _patches(self) -> int:
        return self.anatomy.cells.side**2

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
        grids = kwargs.get("grid_thw", args[1] if len(args) > 1 else None)
        self._grids, cells = grids.tolist(), self.anatomy.cells
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
            layout = self._layout(tuple(grid), lambda grid=grid: cell_layout(grid, self.anatomy.cells.side))
            visual = Visual(layout, (own > 0).float()[:, None], own, range(row, row + grid[0]), self.steps)
            self.visuals[medium].append(visual)
            row += grid[0]
        return out
