"""What the encoder hands to the language model, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.adding import add_at
from illava_lab.method.rows import row_index
from illava_lab.models.layout import Layout
from illava_lab.trace.step import Step

INTERPOLATED = 2**24  # bytes of interpolated states at once, which are wider than those that go on


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image or video as the encoder hands it to the language model. This is all that the two stages share.

    A placeholder whose visual token a reduction removed is a hole: its features mean nothing, and here it has weight 0.

    Attributes:
        layout: its placeholders before any reduction.
        rows: its rows in the encoder's batch.
        steps: the encoder's reductions of that batch.
        left: (S,) bool, placeholders that are no holes (markers never are); None where nothing was removed.
        make_weight, make_size: make `weight` and `size`; not called before somebody reads these.
        known: how many visual tokens are left, where sizes alone tell; None where the device has to count them.
    """

    layout: Layout
    rows: range
    steps: list[Step]
    left: Tensor | None
    make_weight: Callable[[], Tensor]
    make_size: Callable[[], Tensor]
    known: int | None

    @cached_property
    def weight(self) -> Tensor:
        """(S, K) float32, `layout.weight` of what is left: sums to 1 for visual tokens, 0 for holes and markers."""
        return self.make_weight()

    @cached_property
    def size(self) -> Tensor:
        """(S,) float32, patches that each placeholder stands for; 0 for holes and markers."""
        return self.make_size()

    @cached_property
    def tokens(self) -> int:
        """How many visual tokens are left, markers not counted."""
        if self.known is not None:
            return self.known
        assert self.left is not None
        return int(self.left.sum()) - (self.layout.slots - self.layout.tokens)


def untouched(layout: Layout, rows: range) -> EncodedImage:
    """An image of which nothing was removed."""

    def size() -> Tensor:
        return sizes(
            layout, layout.weight[None], torch.ones((1, len(layout.boxes)), dtype=torch.float32, device="cpu")
        )[0]

    return EncodedImage(layout, rows, [], None, lambda: layout.weight, size, layout.tokens)


def encoded_images(
    layout: Layout, rows: range, steps: list[Step], alive: Tensor, kept: float, make_sizes: Callable[[], Tensor],
    counts: Sequence[int] | None = None,
) -> list[EncodedImage]:  # fmt: skip
    """R images of one layout whose encoder rows were reduced.

    Args:
        rows: their rows in the encoder's batch, equally many for each.
        alive: (R, P) bool, the patches in whose place a survivor stands.
        kept: the fraction of patches that survived.
        make_sizes: makes (R, P) float32, the size of each survivor, 0 where there is none.
        counts: how many patches survived of each row of the encoder's batch, where these differ; else None.

    Raises:
        LabError: counts differ, and placeholders are interpolated.
    """
    each = len(rows) // len(alive)
    if counts is not None and layout.interpolates:
        raise LabError(
            "pictures cannot decide how many of their tokens stay where a model interpolates between these; choose a "
            "setting of the strategy by which the schedule decides"
        )

    @cache
    def weights() -> Tensor:
        return survive(layout, alive, kept)

    @cache
    def all_sizes() -> Tensor:
        return sizes(layout, weights(), make_sizes())

    if layout.interpolates:
        left, known = weights().sum(2) > 0, layout.left(kept) if layout.complete else None
    else:
        left = alive if layout.is_identity else alive[:, layout.on(alive.device)[0][:, 0]]
        known = round(kept * alive.shape[1]) if layout.complete and counts is None else None
    if layout.has_markers:
        left = left | layout.marker_on(alive.device)

    def image(i: int, own: Tensor | None) -> EncodedImage:
        placed, left_of = rows[i * each : (i + 1) * each], known
        if counts is not None and layout.complete:
            left_of = sum(counts[row] for row in placed)
        return EncodedImage(layout, placed, steps, own, lambda: weights()[i], lambda: all_sizes()[i], left_of)

    if kept == 1 and counts is None:  # nothing is removed, and the model's own way of joining stays
        known = layout.tokens
        return [image(i, None) for i in range(len(alive))]
    return [image(i, own) for i, own in enumerate(left.unbind(0))]


def join(parts: list[EncodedImage], layout: Layout) -> EncodedImage:
    """One image of several that lie one after another in the prompt, and markers behind them if `layout` has more."""
    more = layout.slots - sum(part.layout.slots for part in parts)
    rows, known = range(parts[0].rows.start, parts[-1].rows.stop), [part.known for part in parts]

    def joined(values: list[Tensor], fill: float | bool) -> Tensor:
        if more:
            values = [*values, values[0].new_full((more, *values[0].shape[1:]), fill)]
        return torch.cat(values)

    lefts = [part.left for part in parts]
    left = None if lefts[0] is None else joined([own for own in lefts if own is not None], True)
    return EncodedImage(
        layout, rows, parts[0].steps, left,
        lambda: joined([part.weight for part in parts], 0.0), lambda: joined([part.size for part in parts], 0.0),
        None if None in known else sum(number for number in known if number is not None),
    )  # fmt: skip


def join_tiles(tiles: list[EncodedImage]) -> EncodedImage:
    """One image of several tiles, which lie tile after tile in the prompt.

    Boxes are those in the tiles: a model is not told where in the picture a tile was cut out.
    """
    return tiles[0] if len(tiles) == 1 else join(tiles, tiles[0].layout.tiled(len(tiles)))


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
    if layout.interpolates and kept < 1:
        order = (coverage[..., 0] * 1000).round().argsort(dim=1, descending=True, stable=True)
        chosen = torch.zeros_like(coverage[..., 0]).scatter(1, order[:, : max(1, round(layout.tokens * kept))], 1.0)
        weight = weight * chosen[..., None]
    return weight / coverage.clamp_min(torch.finfo(weight.dtype).tiny)


def fill(layout: Layout, weight: Tensor, features: Tensor) -> Tensor:
    """(R, S, C): the visual tokens interpolated from (R, P, C) features with `survive`'s weights; NaN at holes.

    Features of patches that are gone must be numbers: weight 0 does not hide NaN.
    """
    source = layout.on(weight.device)[0]
    each = max(1, INTERPOLATED // (len(weight) * features.shape[2] * weight.element_size()))
    parts = [
        _interpolated(*part, features)
        for part in zip(torch.split(source, each), torch.split(weight, each, 1), strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _interpolated(source: Tensor, weight: Tensor, features: Tensor) -> Tensor:
    """The same of some visual tokens: source (s, K), weight (R, s, K)."""
    parts = (features[:, source[:, k]] * weight[:, :, k, None] for k in range(source.shape[1]))
    out = reduce(torch.add, parts)
    return out.masked_fill(weight.sum(-1, keepdim=True) == 0, torch.nan).to(features.dtype)


def sizes(layout: Layout, weight: Tensor, size: Tensor) -> Tensor:
    """(R, S) patches that each placeholder stands for: a survivor's (R, P) size is divided over what it feeds."""
    if not layout.interpolates:
        return weight[..., 0] * size[:, layout.on(weight.device)[0][:, 0]]
    source, rows = layout.on(weight.device)[0], len(weight)
    given = add_at(
        torch.zeros_like(size), row_index(weight), source.flatten().expand(rows, -1), weight.flatten(1), in_place=True
    )
    share = weight / given[:, source].clamp_min(torch.finfo(weight.dtype).tiny)
    return (share * size[:, source]).sum(-1)
