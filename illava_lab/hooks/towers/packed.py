"""Towers that pack the patches of all pictures into one sequence (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, GLM-4.1V).

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

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.towers.packed_frames import Frames, packed_frames
from illava_lab.hooks.towers.rows import known_survivors
from illava_lab.hooks.towers.tables import on_device
from illava_lab.method.ask import ask, by_count, own_counts, take_note
from illava_lab.method.brought import brought, upload
from illava_lab.method.keep import Keep, kept
from illava_lab.method.tokens import Tokens
from illava_lab.sites.packed import CellSite, PackedAttention
from illava_lab.trace.step import Step
from illava_lab.trace.survivors import Survivors


class PackedCells:
    """One call of such a tower; see `Form`.

    Attributes:
        frames: the images and temporal slices, in batches of equal size.
        order: (cells that are left,) long, which they are.
        grids: (time, height, width) in patches of each image or video.
    """

    order: Tensor

    def __init__(self, attachment: Attachment, args: tuple, kwargs: dict[str, Any]) -> None:
        assert attachment.anatomy.cells is not None
        self.attachment, self.cells = attachment, attachment.anatomy.cells
        grids: Tensor = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        self.grids: list[list[int]] = grids.tolist()
        # cells before any reduction
        self.total = sum(time * height * width for time, height, width in self.grids) // self._patches
        self.frames: list[Frames] = []
        self.steps: list[Step] = []
        self.states: Tensor | None = None
        self.nothing: Tensor | None = None
        self._taps: list[tuple[Tensor, Tensor, Tensor]] = []  # one for each call of the current layer's kernel
        self._scaling = 1.0
        self._passed = 0  # patches of the current layer that its kernel has seen
        self._layer: dict[str, Any] = {}  # what the current layer was called with
        self._short: dict[int, tuple[Any, Any]] = {}  # boundaries and tables by identity, and what is left of them

    @property
    def _patches(self) -> int:
        return self.cells.side**2

    # ---- the tower
    def enter_tower(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        device = (args[0] if args else kwargs["hidden_states"]).device
        self.frames = packed_frames(self.grids, self.cells.side, self.cells.window, device)
        self.order = torch.arange(self.total, dtype=torch.long, device=device)  # those left, as they were numbered then
        return args, kwargs

    def leave_tower(self, out: Any) -> Any:
        return out  # states of layers keep the lengths of their layers; the merger's output is whole

    # ---- a layer
    def enter_layer(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Give a layer the attention boundaries and rotary tables of what is left."""
        if self.steps:
            tables = kwargs["position_embeddings"]
            kwargs = {
                **kwargs,
                "cu_seqlens": self._once(kwargs["cu_seqlens"], self._boundaries),
                "position_embeddings": self._once(tables, self._tables),
            }
        self._taps, self._passed, self._layer = [], 0, kwargs
        return kwargs

    def _once(self, given: Any, shorten: Any) -> Any:
        """`shorten(given)`, computed once between two reductions."""
        if id(given) not in self._short:
            # The unreduced one is kept with the answer, so that its identity stays its own.
            self._short[id(given)] = given, shorten(given)
        return self._short[id(given)][1]

    def _tables(self, tables: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        index = self._with_patches(self.order)
        return tuple(table[index.to(table.device)] for table in tables)

    def _boundaries(self, bounds: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """The boundaries that are left; `max_seqlen` may stay, an upper bound is all that kernels need."""
        lengths = self._lengths()
        if len(bounds) == len(lengths) + 1:  # one sequence for each frame: their lengths are known
            ends = np.cumsum([0, *lengths]) * self._patches
            return upload(ends, bounds.device).to(bounds.dtype) if isinstance(bounds, Tensor) else ends
        assert isinstance(bounds, Tensor)
        left = torch.searchsorted(self.order, bounds.to(self.order.device) // self._patches) * self._patches
        return left.unique_consecutive().to(bounds.device, bounds.dtype)

    def _lengths(self) -> list[int]:
        """Cells that are left of each frame, in the order of the sequence."""
        rows = {row: frames.at.shape[1] for frames in self.frames for row in frames.rows}
        return [rows[row] for row in sorted(rows)]

    def _longest(self, layer: int) -> int:
        """An upper bound of the patches that attend to each other in a layer."""
        window = self.cells.window_at(layer)
        return self._patches * (max(self._lengths()) if window is None else min(window**2, max(self._lengths())))

    def _with_patches(self, cells: Tensor) -> Tensor:
        """(...,) cells -> (..., 4) patches, flat along the last axis."""
        patch = torch.arange(self._patches, dtype=torch.long, device=cells.device)
        return (cells[..., None] * self._patches + patch).flatten(-2)

    def seen(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> None:
        self._taps.append((query[0], key[0], value[0]))
        self._scaling = scaling

    def weigh(self, key: Tensor, mask: Tensor | None) -> Tensor | None:
        """For the next call of the current layer's kernel, which sees `key` (1, H, L, d)."""
        bias = self._log_size()
        if bias is None:
            return mask
        first, self._passed = self._passed, self._passed + key.shape[2]
        return bias[first : self._passed].to(key.device, key.dtype)[None, None, None]

    def _log_size(self) -> Tensor | None:
        """(S,) log of the size of each patch's cell, where proportional attention is asked for."""
        if not self.attachment.strategy.proportional_attention or all(s.after == s.before for s in self.steps):
            return None
        out = torch.zeros(len(self.order), dtype=torch.float32, device=self.order.device)
        for frames in self.frames:
            out[frames.at] = frames.survivors.size.log()
        return out.repeat_interleave(self._patches)

    def reduce(self, layer: int, hidden: Tensor) -> Tensor:
        cells = hidden.view(-1, self._patches * hidden.shape[1])
        attention = PackedAttention(
            self._taps,
            self._layer["position_embeddings"],
            self._scaling,
            brought(lambda: on_device(self._layer["cu_seqlens"], hidden.device)),
            [self._with_patches(frames.at) for frames in self.frames],
            self._log_size(),
            self._patches,
            longest=self._longest(layer),
        )
        self._taps = []
        schedule, strategy, out, left, parts = self.attachment.schedule, self.attachment.strategy, cells, [], []
        for frames in self.frames:
            rows = cells[frames.at]  # (F, n, 4C)
            noted: dict[str, Any] = {} if frames.noted is None else {"noted": frames.noted}
            tokens = Tokens(
                "encoder",
                rows.unflatten(2, (self._patches, -1)).mean(2),
                layer=layer,
                size=partial(getattr, frames.survivors, "size"),
                position=frames.survivors.place,
                grid=frames.grid,
                plan=schedule.plan("encoder"),
                site=CellSite(attention, frames.at),
                **noted,
            )
            if layer in self.attachment.looks:
                frames.noted = take_note(strategy, tokens, frames.noted)
            if layer not in schedule.encoder:
                continue
            for part, own, states, keep in self._asked(frames, tokens, rows, schedule.encoder[layer]):
                reduction = ask(strategy, own, keep)
                self.steps.append(Step("encoder", layer, part.rows, reduction, own.count, reduction.slots))
                part.at, part.survivors = part.at.gather(1, reduction.anchor), part.survivors.after(reduction)
                if part.noted is not None:
                    part.noted = part.noted[own.row, reduction.anchor]
                out = out.index_copy(0, part.at.flatten(), reduction.apply(states).flatten(0, 1))
                left.append(part.at.flatten())
                parts.append(part)
        if not parts:  # only looked at
            return hidden
        order, self.frames = torch.cat(left).sort().values, parts
        self.order, self._short = self.order[order], {}
        for frames in self.frames:
            frames.at = torch.searchsorted(order, frames.at)
        return out[order].view(-1, hidden.shape[1])

    def _asked(
        self, frames: Frames, tokens: Tokens, rows: Tensor, keep: Keep
    ) -> list[tuple[Frames, Tokens, Tensor, int]]:
        """Frames with what they keep; one for each count, where pictures decide."""
        counts = own_counts(self.attachment.strategy, tokens, keep)
        if counts is None:
            return [(frames, tokens, rows, kept(keep, tokens.count, f"encoder layer {tokens.layer}"))]
        return [(frames.some(own), tokens.rows(own), rows[own], count) for count, own in by_count(counts).items()]

    # ---- the projector
    def enter_projector(self, hidden: Tensor) -> Tensor:
        return hidden

    def leave_projector(self, out: Tensor) -> Tensor:
        return out.new_full((self.total, out.shape[1]), torch.nan).index_copy_(0, self.order.to(out.device), out)

    # ---- what is left
    def told(self) -> Any:
        frames = [(frames.first, frames.at, frames.survivors.place, frames.survivors.size) for frames in self.frames]
        return self.steps, frames, self.order, [(frames.rows, frames.grid) for frames in self.frames]

    def tell(self, told: Any) -> None:
        self.steps, frames, self.order, known = told
        self.frames = [
            Frames(rows, grid, first, at, known_survivors(place, size))
            for (first, at, place, size), (rows, grid) in zip(frames, known, strict=True)
        ]

    @property
    def patches(self) -> Survivors:
        """All cells of the call as one row: places count through all images."""
        left = [(frames.first, frames.survivors) for frames in self.frames]  # and not the whole call, for the trace

        def place() -> Tensor:
            return torch.cat([(first + own.place).flatten() for first, own in left])[None]

        def size() -> Tensor:
            return torch.cat([own.size.flatten() for _, own in left])[None]

        return Survivors(len(self.order), self.order.device, place, size)

    counts: list[int] | None = None

    @property
    def kept(self) -> float:
        return len(self.order) / self.total

    def left(self) -> list[int]:
        """Cells that are left of each image or video."""
        lengths, out, row = self._lengths(), [], 0
        for time, _, _ in self.grids:
            out.append(sum(lengths[row : row + time]))
            row += time
        return out
