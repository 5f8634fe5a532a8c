"""Statistics of cells in a packed sequence, where several images lie one after another (Qwen-VL)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from illava_lab.sites.attention import PATCH_STATISTICS, AttentionSite
from illava_lab.sites.scores import Spans
from illava_lab.sites.sums import kernels_for


def window_of_cells(grid: tuple[int, int], window: int, device: torch.device) -> Tensor:
    """(height, width) long, a number for the window that each cell of a frame lies in: they rise in raster order."""
    row = torch.arange(grid[0], device=device, dtype=torch.long)[:, None] // window
    column = torch.arange(grid[1], device=device, dtype=torch.long) // window
    return row * grid[1] + column


@dataclass(eq=False)
class PackedAttention:
    """The attention of one layer over a packed sequence of S patches. A statistic is computed once, for all of them.

    Attributes:
        parts: queries and keys, rotated, and values (H, L, d) of consecutive stretches of the sequence.
        rotary: (cos, sin), (S, d) each.
        bounds: (R + 1,) long, where each of the R sequences that attend within themselves begins and ends.
        frames: (F, L) long for each size of frame: the patches of each, if these are the sequences (no windows).
        log_size: (S,) added to the logits of each key (proportional attention), or None.
        patches: how many patches are a cell.
        longest: of the R sequences, where the host knows it; else it is read from the device, which waits for it.
    """

    parts: list[tuple[Tensor, Tensor, Tensor]]
    rotary: tuple[Tensor, Tensor]
    scaling: float
    bounds: Tensor
    frames: list[Tensor]
    log_size: Tensor | None
    patches: int
    longest: int | None = None
    _known: dict[str, Tensor] = field(default_factory=dict, init=False)
    _of_patches: dict[str, Tensor] = field(default_factory=dict, init=False)

    def per_cell(self, name: str) -> Tensor:
        """(G,) or (G, d): one statistic of all cells, the mean over their patches; or (G, K), that of each of these.

        Attention received comes as a sum over queries, not as their mean.
        """
        if name in PATCH_STATISTICS:
            self.per_cell(PATCH_STATISTICS[name])
            return self._of_patches[PATCH_STATISTICS[name]]
        if name not in self._known:
            if name == "values":
                value = self._joined[2].mean(0, dtype=torch.float32)
            else:
                value = self._keys(name) if name in ("keys", "wide_keys") else self._attended(name)
            cells = value.view(-1, self.patches, *value.shape[1:])
            self._known[name] = cells.mean(1)
            self._of_patches[name] = cells
        return self._known[name]

    def _keys(self, name: str) -> Tensor:
        cos, sin = (table.float() for table in self.rotary)
        key = self._joined[1].float()
        if name == "keys":
            key = key.mean(0)  # before the rotation, which is the same for all heads
        first, second = key.chunk(2, dim=-1)
        key = key * cos - torch.cat([-second, first], dim=-1) * sin  # the rotation backwards
        return key if name == "keys" else key.transpose(0, 1).flatten(1)

    @cached_property
    def _joined(self) -> tuple[Tensor, Tensor, Tensor]:
        queries, keys, values = zip(*self.parts, strict=True)
        return torch.cat(queries, dim=1), torch.cat(keys, dim=1), torch.cat(values, dim=1)

    def _attended(self, name: str) -> Tensor:
        query, key, _ = self._joined
        site = AttentionSite(query[None], key[None], self.scaling, self._mask(None))
        if kernels_for(site.scores) is not None:
            return _statistic(replace(site, spans=self._spans()), name)[0]
        # One more, for padding.
        out = torch.zeros(query.shape[1] + 1, device=query.device, dtype=torch.float32)
        for index, valid in self._sequences():
            part = AttentionSite(
                query[:, index].transpose(0, 1), key[:, index].transpose(0, 1), self.scaling, self._mask(index), valid
            )
            value = _statistic(part, name)
            out[index if valid is None else index.masked_fill(~valid, len(out) - 1)] = value
        return out[:-1]

    def _mask(self, index: Tensor | None) -> Tensor | None:
        """(R or 1, 1, 1, L): what is added to the logits of each key."""
        if self.log_size is None:
            return None
        return (self.log_size[None] if index is None else self.log_size[index])[:, None, None]

    def _sequences(self) -> list[tuple[Tensor, Tensor | None]]:
        """The sequences in batches: (R, L) long positions and (R, L) bool, False at padding, or None."""
        if len(self.bounds) - 1 == sum(len(frames) for frames in self.frames):
            return [(frames, None) for frames in self.frames]
        lengths = self.bounds.diff()[:, None]
        longest = int(lengths.max()) if self.longest is None else self.longest
        offset = torch.arange(longest, device=lengths.device, dtype=torch.long)
        index = self.bounds[:-1, None] + offset
        return [(index.clamp_max(self.rotary[0].shape[0] - 1), offset < lengths)]

    def _spans(self) -> Spans:
        place = torch.arange(self.rotary[0].shape[0], device=self.bounds.device, dtype=self.bounds.dtype)
        after = torch.searchsorted(self.bounds, place, right=True)
        return Spans(self.bounds[after - 1].int(), self.bounds[after].int())


def _statistic(site: AttentionSite, name: str) -> Tensor:
    return site.received() if name == "attention_received" else site.statistic(name)


@dataclass(eq=False)
class CellSite:
    """What a strategy can ask about the cells of some frames: an `AttentionSite` for a packed sequence."""

    attention: PackedAttention
    at: Tensor  # (F, n)

    def statistic(self, name: str) -> Tensor:
        """One of `illava_lab.method.STATISTICS`.

        Raises:
            LabError: this site does not have it.
        """
        value = self.attention.per_cell(name)[self.at]
        if name not in ("attention_received", "patch_attention"):
            return value
        return value / (self.at.shape[1] * self.attention.patches)
