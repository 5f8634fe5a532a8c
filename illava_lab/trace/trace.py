"""What happened in the last forward pass: every reduction step, and which patches each survivor stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.strategy import Stage, TokenMap
from illava_lab.models.layout import Layout, Visual, survive


@dataclass(frozen=True, eq=False)
class Step:
    """One reduction, of images that have equally many tokens there. A layer where they differ takes several steps.

    Attributes:
        stage, layer: where it happened.
        rows: what each row of the map is. In the encoder its rows (images, crops, frames) in the order of the pixels;
            in the LLM images and videos in the order of the prompts.
        map: the TokenMap. In the encoder it includes CLS where the tower has one.
        before, after: visual tokens per row, CLS not counted.
    """

    stage: Stage
    layer: int
    rows: Sequence[int]
    map: TokenMap
    before: int
    after: int

    @property
    def scores(self) -> Tensor | None:
        """(rows, N) what the strategy ranked by, or None if it does not rank."""
        return self.map.score

    def __repr__(self) -> str:
        several = f" in each of {len(self.rows)} rows" if len(self.rows) > 1 else ""
        return f"Step({self.stage} layer {self.layer}: {self.before} -> {self.after} visual tokens{several})"


@dataclass(frozen=True, eq=False)
class Sources:
    """Which patches the surviving visual tokens of one image or video stand for. Markers (newlines) are left out.

    Attributes:
        weights: (M, P) float64, row m = weight of every patch in survivor m (averaging maps: rows sum to 1). Patches
            are counted crop after crop (frame after frame), each in raster order.
        anchor: (M,) the patch in whose place each survivor stands; for an interpolated one, the heaviest there.
        grid: (height, width) in patches of one crop (or frame, or image without crops).
        boxes: (P, 4) left, top, right and bottom of each patch, as fractions of the picture it was cut from; an empty
            rectangle for a patch of padding.
    """

    weights: Tensor
    anchor: Tensor
    grid: tuple[int, int]
    boxes: Tensor

    @property
    def crops(self) -> int:
        """How many crops (frames) the patches lie in; patch p lies in crop p // (height * width)."""
        return self.weights.shape[1] // (self.grid[0] * self.grid[1])

    def crop(self, number: int) -> Sources:
        """The same for one crop (frame) alone: its patches, and the survivors that stand for any of them."""
        first, count = number * self.grid[0] * self.grid[1], self.grid[0] * self.grid[1]
        own = self.weights[:, first : first + count]
        inside = (self.anchor >= first) & (self.anchor < first + count)
        anchor = torch.where(inside, self.anchor - first, own.abs().argmax(1))
        here = (own != 0).any(1)
        return Sources(own[here], anchor[here], self.grid, self.boxes[first : first + count])

    def patches(self, survivor: int) -> list[int]:
        """The patches that survivor number `survivor` stands for, heaviest first."""
        row = self.weights[survivor]
        order = row.abs().argsort(descending=True, stable=True)
        return [int(i) for i in order if row[i] != 0]

    def owner(self) -> Tensor:
        """(P,) the survivor that holds the largest weight of each patch, -1 where the patch was dropped."""
        best = self.weights.abs().max(0)
        return torch.where(best.values > 0, best.indices, -1)


@dataclass
class Trace:
    """Filled by an attachment during each prefill; a later prefill replaces it.

    Images are counted in the order of the prompts, and a video counts as one.

    Attributes:
        steps: the reductions of the last prefill in order: encoder first, then LLM.
        cls_tokens: 1 if the tower has CLS.
        images_per_row: number of images in each prompt of the batch.
    """

    cls_tokens: int
    steps: list[Step] = field(default_factory=list)
    images_per_row: list[int] = field(default_factory=list)
    _images: list[Visual] = field(default_factory=list)

    def start(self, images: list[Visual], images_per_row: list[int]) -> None:
        """A new prefill begins. Beams share their images."""
        self._images, self.images_per_row = images, images_per_row
        self.steps = list({id(step): step for image in images for step in image.steps}.values())

    def layout(self, image: int = 0) -> Layout:
        """What image number `image` is made of without any reduction: crops, patches, visual tokens."""
        return self._image(image).layout

    def entered(self, image: int = 0) -> int:
        """Visual tokens that the encoder left of image number `image` to the language model, markers not counted."""
        return int((self._image(image).weight.sum(1) > 0).sum())

    def places(self, image: int, layer: int) -> list[Tensor]:
        """For each encoder row of image number `image`: (n,) the patches whose places are still held in front of an
        encoder layer, in no particular order."""
        visual, out = self._image(image), []
        for row in visual.rows:
            place = torch.arange(-self.cls_tokens, visual.layout.patches[1] * visual.layout.patches[2])
            for step, own in _steps_of(visual, row):
                if step.stage == "image" or step.layer < layer:
                    place = place[step.map.anchor[own].cpu()]
            out.append(place[place >= 0])
        return out

    def sources(self, image: int = 0, steps: int | None = None) -> Sources:
        """Provenance of image number `image` (in the order of the prompts) after the first `steps` reductions.

        Args:
            steps: how many entries of `self.steps` to follow; None for all.

        Raises:
            LabError: no such image.
        """
        visual, followed = self._image(image), self.steps[:steps]
        layout, patches = visual.layout, visual.layout.patches[1] * visual.layout.patches[2]
        rows = [self._encoder_row(visual, row, followed, patches) for row in visual.rows]
        encoded = sparse.block_diag(rows, format="csr")

        weight = visual.weight.cpu()
        if not all(step in followed for step in visual.steps):
            alive = torch.from_numpy(np.diff(encoded.indptr) > 0)
            weight = survive(layout, alive[None], float(alive.float().mean()))[0]
        place = np.flatnonzero(weight.sum(1).numpy() > 0)
        source, weight = layout.source.numpy()[place], weight.double().numpy()[place]
        weight /= weight.sum(1, keepdims=True)
        cells = np.repeat(np.arange(len(place)), source.shape[1])
        packing = sparse.coo_array((weight.ravel(), (cells, source.ravel())), shape=(len(place), encoded.shape[0]))
        weights, anchor = packing.tocsr() @ encoded, source[np.arange(len(place)), weight.argmax(1)]
        for step in followed:
            if step.stage == "llm" and image in step.rows:
                row = list(step.rows).index(image)
                weights, kept = _matrix(step.map, row) @ weights, step.map.anchor[row].cpu().numpy()
                order = kept.argsort(kind="stable")
                weights, anchor = weights[order], anchor[kept[order]]
        return Sources(torch.from_numpy(weights.toarray()), torch.from_numpy(anchor), layout.patches[1:], layout.boxes)

    def _image(self, image: int) -> Visual:
        count = len(self._images)
        if not 0 <= image < count:
            raise LabError(f"image must be between 0 and {count - 1}, got {image}" if count else "the trace is empty")
        return self._images[image]

    def _encoder_row(self, visual: Visual, row: int, followed: list[Step], patches: int) -> sparse.csr_array:
        """(P, P): what stands in the place of each patch of one encoder row; empty where nothing does."""
        skip = self.cls_tokens
        weights, anchor = sparse.eye_array(patches + skip, format="csr"), np.arange(patches + skip)
        for step, own in _steps_of(visual, row):
            if step in followed:
                weights, anchor = _matrix(step.map, own) @ weights, anchor[step.map.anchor[own].cpu().numpy()]
        entries = np.ones(len(anchor)), (anchor, np.arange(len(anchor)))
        spread = sparse.coo_array(entries, shape=(patches + skip, len(anchor)))
        return (spread.tocsr() @ weights)[skip:, skip:]

    def __repr__(self) -> str:
        return "Trace(\n" + "".join(f"  {step}\n" for step in self.steps) + ")"


def _steps_of(visual: Visual, row: int) -> Iterator[tuple[Step, int]]:
    """The encoder's reductions of one of its rows, in order, and which row of the map it is there."""
    for step in visual.steps:
        if row in step.rows:
            yield step, list(step.rows).index(row)


def _matrix(reduction: TokenMap, row: int) -> sparse.csr_array:
    """(M, N) weights of one row of a map."""
    anchor = reduction.anchor[row].cpu().numpy()
    parts = [(np.arange(len(anchor)), anchor, np.ones(len(anchor)))]
    if reduction.self_weight is not None:
        parts[0] = (*parts[0][:2], reduction.self_weight[row].double().cpu().numpy())
    if reduction.weight is not None:
        edges = (reduction.slot[row], reduction.source[row], reduction.weight[row].double())
        parts.append(tuple(part.cpu().numpy() for part in edges))
    slot, source, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    return sparse.coo_array((weight, (slot, source)), shape=(len(anchor), reduction.tokens)).tocsr()
