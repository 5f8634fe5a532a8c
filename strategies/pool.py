"""Pooling: average neighbouring patches, the baseline that needs no score."""

from math import ceil

import numpy as np
import torch
from torch import Tensor

from illava_lab.method import Stage, Strategy, TokenMap, Tokens, host_made, one_of, register


@register
class Pool(Strategy):
    """Average over the cells of a coarser grid, as square as they can be, and exactly as many as `keep` asks for.

    M cells stand in ``h = round(sqrt(M H / W))`` rows of the H x W grid, ``floor((u+1)M/h) - floor(uM/h)`` in row u:
    196 out of 27 x 27 are the grid 14 x 14; where M has no good factors, some rows have one cell more. A slot takes the
    place of the patch at the centre of its cell. Protected tokens (CLS, line
    ends) are copied.

    Args:
        bins: how a cell averages. "adaptive": rows ``floor(uH/h)`` to ``ceil((u+1)H/h)``, and columns alike; cells
            overlap where sides do not divide (the usual adaptive average pooling). "bilinear": the two nearest rows
            and columns of ``(u+1/2) H/h - 1/2``, as LLaVA-OneVision resizes video frames. "disjoint" is ours: cells
            of equally many tokens (up to one), every token in one cell.

    Where tokens are missing, after another reduction, there is no grid to average over: all three are then "disjoint",
    with averages weighted by the patches each token stands for.
    """

    name = "pool"
    kind = "pool"
    home = ("encoder",)
    first_llm_layer = 0

    bins: str = "adaptive"

    memory = "quadratic"

    def __post_init__(self) -> None:
        one_of("bins", self.bins, ("adaptive", "bilinear", "disjoint"))

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        place = tokens.position.masked_fill(tokens.protected, -1) if tokens.has_protected else tokens.position
        order = place.argsort(dim=1, stable=True)
        first, patches = order.tensor_split([tokens.protected_count], dim=1)
        cells = tokens.room(keep)
        if cells == 0:
            return TokenMap.keep(first, tokens.count)
        grid = tokens.grid or (1, patches.shape[1])
        if self.bins == "disjoint" or grid[0] * grid[1] != patches.shape[1]:
            return self._disjoint(tokens, first, patches, cells, grid)
        taken, own, slot, weight = _cells(tokens.hidden, tokens.protected_count, grid, cells, self.bins)
        anchor, source = order[:, taken].split([len(own), len(slot)], dim=1)
        own, slot, weight = (part.expand(tokens.batch, -1) for part in (own, slot, weight))
        return TokenMap(anchor, tokens.count, own, slot, source, weight, row=tokens.row)

    @staticmethod
    def _disjoint(tokens: Tokens, first: Tensor, patches: Tensor, cells: int, grid: tuple[int, int]) -> TokenMap:
        """Cut the raster order into h bands, sort each by column, and cut that into cells."""
        band, cell, taken = _bands(tokens.hidden, patches.shape[1], _rows(grid, cells), cells)
        column = tokens.position.gather(1, patches) % grid[1]
        patches = patches.gather(1, (column + band * grid[1]).argsort(dim=1, stable=True))[:, taken]
        centre, other = patches.split([cells, len(cell)], dim=1)
        anchor = torch.cat([first, centre], dim=1) if tokens.has_protected else centre
        slot = (cell + first.shape[1]).expand(tokens.batch, -1)
        return TokenMap.merge_into(anchor, slot, other, tokens.size, row=tokens.row)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1] if stage == "encoder" else super().layers(stage, depth)


def _rows(grid: tuple[int, int], cells: int) -> int:
    """Into how many rows the cells are set: nearly square cells, and no side with more of them than patches."""
    height, width = grid
    return min(max(round((cells * height / width) ** 0.5), ceil(cells / width)), height, cells)


def _axis(length: int, cells: int, bins: str) -> tuple[np.ndarray, np.ndarray]:
    """(cells, length) weights of one side, rows sum to 1; (cells,) the index at the centre of each cell."""
    cell, index = np.arange(cells)[:, None], np.arange(length)
    if bins == "adaptive":
        weight = ((index >= cell * length // cells) & (index * cells < (cell + 1) * length)).astype(np.float64)
    else:
        weight = np.maximum(1 - np.abs(index - ((cell + 0.5) * length / cells - 0.5)), 0.0)
    return weight / weight.sum(axis=1, keepdims=True), (2 * cell[:, 0] + 1) * length // (2 * cells)


@host_made
def _cells(copied: int, grid: tuple[int, int], cells: int, bins: str) -> tuple[np.ndarray, ...]:
    """Tokens in raster order that are taken, the `copied` and the centres of cells, then the other patches of cells;
    the own weight of each of the first; slot and weight of each other."""
    (height, width), rows = grid, _rows(grid, cells)
    down, middle = _axis(height, rows, bins)
    matrix, centres = [], []
    for u in range(rows):
        across, column = _axis(width, (u + 1) * cells // rows - u * cells // rows, bins)
        matrix.append((down[u][:, None] * across[:, None]).reshape(-1, height * width))
        centres.append(middle[u] * width + column)
    weights, centre = np.concatenate(matrix).astype(np.float32), np.concatenate(centres)
    own = weights[np.arange(cells), centre].copy()
    weights[np.arange(cells), centre] = 0
    slot, source = weights.nonzero()
    taken = np.concatenate([np.arange(copied), centre + copied, source + copied])
    return taken, np.concatenate([np.ones(copied, np.float32), own]), slot + copied, weights[slot, source]


@host_made
def _bands(count: int, rows: int, cells: int) -> tuple[np.ndarray, ...]:
    """The band of each of `count` patches in raster order; and sorted by bands, the cell of those that are no centre,
    and where centres and these are."""
    cell = ((np.arange(count) + 1) * cells - 1) // count
    start = np.arange(cells + 1) * count // cells
    centre = (start[:-1] + start[1:] - 1) // 2
    other = np.delete(np.arange(count), centre)
    return ((cell + 1) * rows - 1) // cells, cell[other], np.concatenate([centre, other])
