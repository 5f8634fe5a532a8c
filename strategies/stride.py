"""Uniform stride: keep every so-manieth token, the baseline that looks at nothing."""

from math import ceil, sqrt

import torch

from illava_lab.method import LabError, Stage, Strategy, TokenMap, Tokens, host_made, one_of, register


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
    first_llm_layer = 0

    pattern: str = "raster"

    def __post_init__(self) -> None:
        one_of("pattern", self.pattern, ("raster", "grid"))

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        first, wanted = tokens.protected_count, tokens.room(keep)
        (chosen,) = _places(tokens.hidden, first, tokens.count - first, wanted, tokens.grid, self.pattern)
        if not tokens.has_protected:
            return TokenMap.keep(chosen.expand(tokens.batch, -1), tokens.count)
        order = tokens.protected.to(torch.int8).argsort(dim=1, descending=True, stable=True)  # then others as they come
        return TokenMap.keep(order[:, chosen].sort(dim=1).values, tokens.count)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return super().layers(stage, depth)[:1]


@host_made
def _places(first: int, count: int, wanted: int, grid: tuple[int, int] | None, pattern: str) -> tuple[torch.Tensor]:
    places = _on_grid(grid, count, wanted) if pattern == "grid" else _centred(count, wanted)
    return (torch.tensor([*range(first), *(first + place for place in places)], dtype=torch.long, device="cpu"),)


def _on_grid(grid: tuple[int, int] | None, count: int, wanted: int) -> list[int]:
    if grid is None or grid[0] * grid[1] != count:
        raise LabError(f"stride: pattern 'grid' needs the whole patch grid {grid or ''}, {count} tokens are there")
    h, w = grid
    rows = min(max(round(sqrt(wanted * h / w)), ceil(wanted / w)), h, wanted)
    share = [(r + 1) * wanted // rows - r * wanted // rows for r in range(rows)]
    return [y * w + x for y, n in zip(_centred(h, rows), share, strict=True) for x in _centred(w, n)]


def _centred(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` places at even steps, half a step from both ends."""
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
