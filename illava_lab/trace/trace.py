"""What happened in the last forward pass: every reduction step, composed back to the patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.token_map import TokenMap
from illava_lab.models.layout import Layout
from illava_lab.trace.encoded import EncodedImage, survive
from illava_lab.trace.sources import Sources
from illava_lab.trace.step import Step


@dataclass(frozen=True, eq=False)
class Prefilled:
    """What one prefill did. It is complete before a `Trace` shows it, and nothing changes it afterwards.

    Attributes:
        steps: its reductions in order: encoder first, then LLM.
        images: its images and videos in the order of the prompts.
        images_per_row: how many of them each prompt has.
    """

    steps: list[Step]
    images: list[EncodedImage]
    images_per_row: list[int]


class Trace:
    """What the last prefill under an attachment did.

    Images are counted in the order of the prompts, and a video counts as one. Where several threads run the model, it
    is the prefill that ended last.

    Attributes:
        cls_tokens: 1 if the tower has CLS.
    """

    def __init__(self, cls_tokens: int) -> None:
        self.cls_tokens = cls_tokens
        self._make: Callable[[], Prefilled] = lambda: Prefilled([], [], [])

    def show(self, make: Callable[[], Prefilled]) -> None:
        """From now on, this is the last prefill; `make` is called when somebody looks."""
        self._make = cache(make)

    @property
    def steps(self) -> list[Step]:
        """The reductions of the last prefill in order: encoder first, then LLM."""
        return self._make().steps

    @property
    def images_per_row(self) -> list[int]:
        """Number of images in each prompt of the batch."""
        return self._make().images_per_row

    def layout(self, image: int = 0) -> Layout:
        """What image number `image` is made of without any reduction: crops, patches, visual tokens."""
        return self.encoded(image).layout

    def entered(self, image: int = 0) -> int:
        """Visual tokens that the encoder left of image number `image` to the language model, markers not counted."""
        return self.encoded(image).tokens

    def left(self, image: int = 0) -> int:
        """Visual tokens of image number `image` that the last layer of the language model saw, markers not counted."""
        entered = self.entered(image)
        return next(
            (step.after for step in reversed(self.steps) if step.stage == "llm" and image in step.rows), entered
        )

    def places(self, image: int, layer: int) -> list[Tensor]:
        """For each encoder row of image number `image`: (n,) the patches whose places are still held in front of an
        encoder layer, in no particular order."""
        visual, out = self.encoded(image), []
        for row in visual.rows:
            place = torch.arange(-self.cls_tokens, visual.layout.patches[1] * visual.layout.patches[2])
            for step, own in steps_of(visual, row):
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
        visual, followed = self.encoded(image), self.steps[:steps]
        layout, patches = visual.layout, visual.layout.patches[1] * visual.layout.patches[2]
        rows = [self._encoder_row(visual, row, followed, patches) for row in visual.rows]
        encoded = sparse.block_diag(rows, format="csr")

        weight = visual.weight.cpu()
        if not all(step in followed for step in visual.steps):
            alive = torch.from_numpy(np.diff(encoded.indptr) > 0)
            weight = survive(layout, alive[None], float(alive.float().mean()))[0]
        place = np.flatnonzero(weight.sum(1).numpy() > 0)
        source, share = layout.source.numpy()[place], weight.double().numpy()[place]
        share /= share.sum(1, keepdims=True)
        cells = np.repeat(np.arange(len(place)), source.shape[1])
        made_of = sparse.coo_array((share.ravel(), (cells, source.ravel())), shape=(len(place), encoded.shape[0]))
        weights, anchor = made_of.tocsr() @ encoded, source[np.arange(len(place)), share.argmax(1)]
        for step in followed:
            if step.stage == "llm" and image in step.rows:
                row = list(step.rows).index(image)
                weights, kept = matrix_of(step.map, row) @ weights, step.map.anchor[row].cpu().numpy()
                order = kept.argsort(kind="stable")
                weights, anchor = weights[order], anchor[kept[order]]
        return Sources(torch.from_numpy(weights.toarray()), torch.from_numpy(anchor), layout.patches[1:], layout.boxes)

    def encoded(self, image: int = 0) -> EncodedImage:
        """Image number `image` as the encoder hands it to the language model.

        Raises:
            LabError: no such image.
        """
        images = self._make().images
        count = len(images)
        if not 0 <= image < count:
            raise LabError(f"image must be between 0 and {count - 1}, got {image}" if count else "the trace is empty")
        return images[image]

    def _encoder_row(self, visual: EncodedImage, row: int, followed: list[Step], patches: int) -> sparse.csr_array:
        """(P, P): what stands in the place of each patch of one encoder row; empty where nothing does."""
        skip = self.cls_tokens
        weights, anchor = sparse.eye_array(patches + skip, format="csr"), np.arange(patches + skip)
        for step, own in steps_of(visual, row):
            if step in followed:
                weights, anchor = matrix_of(step.map, own) @ weights, anchor[step.map.anchor[own].cpu().numpy()]
        entries = np.ones(len(anchor)), (anchor, np.arange(len(anchor)))
        spread = sparse.coo_array(entries, shape=(patches + skip, len(anchor)))
        return (spread.tocsr() @ weights)[skip:, skip:]

    def __repr__(self) -> str:
        return "Trace(\n" + "".join(f"  {step}\n" for step in self.steps) + ")"


def steps_of(visual: EncodedImage, row: int) -> Iterator[tuple[Step, int]]:
    """The encoder's reductions of one of its rows, in order, and which row of the map it is there."""
    for step in visual.steps:
        if row in step.rows:
            yield step, list(step.rows).index(row)


def matrix_of(reduction: TokenMap, row: int) -> sparse.csr_array:
    """(M, N) weights of one row of a map."""
    anchor = reduction.anchor[row].cpu().numpy()
    slot, source, weight = np.arange(len(anchor)), anchor, np.ones(len(anchor))
    if reduction.self_weight is not None:
        weight = reduction.self_weight[row].double().cpu().numpy()
    if reduction.edges is not None:
        to, of, share = (part[row].cpu() for part in reduction.edges)
        slot, source = np.concatenate([slot, to.numpy()]), np.concatenate([source, of.numpy()])
        weight = np.concatenate([weight, share.double().numpy()])
    return sparse.coo_array((weight, (slot, source)), shape=(len(anchor), reduction.tokens)).tocsr()
