"""What a reduction in the encoder leaves of an image: the only thing that both stages share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from illava_lab.models.layout import Layout
from illava_lab.trace.step import Step


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image or video as the encoder hands it to the language model. This is all that the two stages share.

    A placeholder that a reduction removed is a hole (NaN) in the model's features and has weight 0 here.

    Attributes:
        layout: its placeholders before any reduction.
        weight: (S, K) float32, `layout.weight` of what is left: sums to 1 for survivors, 0 for holes and markers.
        size: (S,) float32, patches that each placeholder stands for; 0 for holes and markers.
        rows: its rows in the encoder's batch.
        steps: the encoder's reductions of that batch.
    """

    layout: Layout
    weight: Tensor
    size: Tensor
    rows: range
    steps: list[Step]


def join_tiles(tiles: list[EncodedImage]) -> EncodedImage:
    """One image of several tiles, which lie tile after tile in the prompt.

    Boxes are those in the tiles: a model is not told where in the picture a tile was cut out.
    """
    count, (rows, height, width) = len(tiles), tiles[0].layout.patches
    if count == 1:
        return tiles[0]
    layout = tiles[0].layout
    source = torch.cat([layout.source + i * len(layout.boxes) for i in range(count)])
    joined = Layout(
        (count * rows, height, width), source, layout.weight.repeat(count, 1), None, layout.boxes.repeat(count, 1)
    )
    weight, size = torch.cat([tile.weight for tile in tiles]), torch.cat([tile.size for tile in tiles])
    return EncodedImage(joined, weight, size, range(tiles[0].rows.start, tiles[-1].rows.stop), tiles[0].steps)


def survive(layout: Layout, alive: Tensor, kept: float) -> Tensor:
    """(R, S, K) weights of what is left of R images of one layout when patches are gone; all 0 for a hole.

    A placeholder of one patch lives as long as its patch. Interpolated ones see several patches, and nearly all of
    them would outlive half of the patches: so only the fraction `kept` of the visual tokens stays, those with the most
    weight on patches that are there (coverage, to three decimals; ties to the first), as the average over these.

    Args:
        alive: (R, P) bool, patches in whose place a survivor stands.
        kept: the fraction of patches that survived.
    """
    source, weight = layout.on(alive.device)
    weight = weight * alive[:, source]
    coverage = weight.sum(-1, keepdim=True)
    if layout.source.shape[1] > 1 and kept < 1:
        order = (coverage[..., 0] * 1000).round().argsort(dim=1, descending=True, stable=True)
        chosen = torch.zeros_like(coverage[..., 0]).scatter(1, order[:, : max(1, round(layout.tokens * kept))], 1.0)
        weight = weight * chosen[..., None]
    return weight / coverage.clamp_min(torch.finfo(weight.dtype).tiny)


def fill(layout: Layout, weight: Tensor, features: Tensor) -> Tensor:
    """(R, S, C): the visual tokens interpolated from (R, P, C) features with `survive`'s weights; NaN at holes."""
    source = layout.on(weight.device)[0]
    features = features.nan_to_num()
    parts = (features[:, source[:, k]] * weight[:, :, k, None] for k in range(source.shape[1]))
    out = reduce(torch.add, parts)
    return out.masked_fill(weight.sum(-1, keepdim=True) == 0, torch.nan).to(features.dtype)


def sizes(layout: Layout, weight: Tensor, size: Tensor) -> Tensor:
    """(R, S) patches that each placeholder stands for: a survivor's (R, P) size is divided over what it feeds."""
    source = layout.on(weight.device)[0]
    flat = source.flatten().expand(weight.shape[0], -1)
    given = torch.zeros_like(size).scatter_add(1, flat, weight.flatten(1))
    share = weight / given[:, source].clamp_min(torch.finfo(weight.dtype).tiny)
    return (share * size[:, source]).sum(-1)
