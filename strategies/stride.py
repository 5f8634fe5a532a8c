"""Uniform stride: keep every so-manieth token, the baseline that looks at nothing."""

from math import ceil, sqrt

import torch

from illava_lab.method import LabError, Stage, Strategy, TokenMap, Tokens, one_of, ranking, register


@register
class Stride(Strategy):
    """Of N tokens in their order, keep those at ``floor((i + 1/2) N/M)``, i = 0..M-1; protected ones besides.

    Args:
        pattern: "raster" strides along the order of the tokens. "grid" strides over ``h = round(sqrt(M H/W))`` rows of
            the H x W patches, then along each: h x w tokens where h divides M, else rows of w or w + 1. It needs the
            whole grid. Both are ours.

    A stride over what an earlier stride left leaves clumps and gaps, so it reduces once, early in the encoder.
    """

    name = "stride"
    kind = "prune"
    home = ("encoder",)

    pattern: str = "raster"

    def __post_init__(self) -> None:
        one_of("pattern", self.pattern, ("raster", "grid"))

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        protected, wanted = tokens.protected_count, tokens.room(keep)
        count = tokens.count - protected
        places = self._on_grid(tokens.grid, count, wanted) if self.pattern == "grid" else _centred(count, wanted)
        chosen = [*range(protected), *(protected + place for place in places)]
        order = ranking(torch.zeros_like(tokens.size), tokens)  # protected tokens, then the others as they come
        return TokenMap.keep(order[:, chosen].sort(dim=1).values, tokens.count)

    @staticmethod
    def _on_grid(grid: tuple[int, int] | None, count: int, wanted: int) -> list[int]:
        if grid is None or grid[0] * grid[1] != count:
            raise LabError(f"stride: pattern 'grid' needs the whole patch grid {grid or ''}, {count} tokens are there")
        height, width = grid
        rows = min(max(round(sqrt(wanted * height / width)), ceil(wanted / width)), height, wanted)
        share = [(r + 1) * wanted // rows - r * wanted // rows for r in range(rows)]
        in_rows = zip(_centred(height, rows), share, strict=True)
        return [row * width + column for row, n in in_rows for column in _centred(width, n)]

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return super().layers(stage, depth)[:1]


def _centred(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` places at even steps, half a step from both ends."""
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
