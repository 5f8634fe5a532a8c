"""Pooling: average neighbouring patches, the baseline that needs no score."""

from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from illava_lab.method import Stage, Strategy, TokenMap, Tokens, one_of, register


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
        centre, own, slot, source, weight = _cells(grid, cells, self.bins, tokens.hidden.device)
        batch = (tokens.batch, -1)
        return TokenMap(
            torch.cat([first, patches[:, centre]], dim=1),
            tokens.count,
            torch.cat([own.new_ones(first.shape), own.expand(batch)], dim=1),
            (slot + first.shape[1]).expand(batch),
            patches[:, source],
            weight.expand(batch),
        )

    @staticmethod
    def _disjoint(tokens: Tokens, first: Tensor, patches: Tensor, cells: int, grid: tuple[int, int]) -> TokenMap:
        """Cut the raster order into h bands, sort each by column, and cut that into cells."""
        count, rows = patches.shape[1], _rows(grid, cells)
        rank = torch.arange(count, device=patches.device)
        cell = ((rank + 1) * cells - 1) // count
        band = ((cell + 1) * rows - 1) // cells
        column = tokens.position.gather(1, patches) % grid[1]
        patches = patches.gather(1, (band * grid[1] + column).argsort(dim=1, stable=True))
        start = torch.arange(cells + 1, device=patches.device) * count // cells
        centre = (start[:-1] + start[1:] - 1) // 2
        other = torch.zeros_like(rank).scatter(0, centre, 1).argsort(stable=True)[: count - cells]
        anchor, slot = torch.cat([first, patches[:, centre]], dim=1), first.shape[1] + cell[other]
        return TokenMap.merge_into(anchor, slot.expand(tokens.batch, -1), patches[:, other], tokens.size)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1] if stage == "encoder" else super().layers(stage, depth)


def _rows(grid: tuple[int, int], cells: int) -> int:
    """Into how many rows the cells are set: nearly square cells, and no side with more of them than patches."""
    height, width = grid
    return min(max(round((cells * height / width) ** 0.5), ceil(cells / width)), height, cells)


def _axis(length: int, cells: int, bins: str) -> tuple[Tensor, Tensor]:
    """(cells, length) weights of one side, rows sum to 1; (cells,) the index at the centre of each cell."""
    cell, index = torch.arange(cells)[:, None], torch.arange(length)
    if bins == "adaptive":
        weight = ((index >= cell * length // cells) & (index * cells < (cell + 1) * length)).double()
    else:
        weight = (1 - (index - ((cell.double() + 0.5) * length / cells - 0.5)).abs()).clamp_min(0.0)
    return weight / weight.sum(dim=1, keepdim=True), (2 * cell[:, 0] + 1) * length // (2 * cells)


@lru_cache(maxsize=32)
def _cells(grid: tuple[int, int], cells: int, bins: str, device: torch.device) -> tuple[Tensor, ...]:
    """Of every cell: its centre and the weight of that; and its other patches as edges (slot, source, weight)."""
    (height, width), rows = grid, _rows(grid, cells)
    down, middle = _axis(height, rows, bins)
    matrix, centres = [], []
    for u in range(rows):
        across, column = _axis(width, (u + 1) * cells // rows - u * cells // rows, bins)
        matrix.append((down[u][:, None] * across[:, None]).flatten(1))
        centres.append(middle[u] * width + column)
    weights, centre = torch.cat(matrix).float(), torch.cat(centres)
    others = weights.scatter(1, centre[:, None], 0.0)
    slot, source = others.nonzero(as_tuple=True)
    own = weights.gather(1, centre[:, None])[:, 0]
    return tuple(part.to(device) for part in (centre, own, slot, source, others[slot, source]))
