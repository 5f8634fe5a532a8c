"""What happened in the last forward pass: every reduction step, and which patches each survivor stands for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.strategy import Stage, TokenMap


@dataclass(frozen=True, eq=False)
class Step:
    """One reduction.

    Attributes:
        stage, layer: where it happened.
        images: how many images were reduced; row i of the map is image i.
        map: the TokenMap. In the encoder it includes CLS where the tower has one.
        before, after: visual tokens per image, CLS not counted.
    """

    stage: Stage
    layer: int
    images: int
    map: TokenMap
    before: int
    after: int

    @property
    def scores(self) -> Tensor | None:
        """(images, N) what the strategy ranked by, or None if it does not rank."""
        return self.map.score

    def __repr__(self) -> str:
        several = f" in each of {self.images} images" if self.images > 1 else ""
        return f"Step({self.stage} layer {self.layer}: {self.before} -> {self.after} visual tokens{several})"


@dataclass(frozen=True, eq=False)
class Sources:
    """Which image patches the surviving tokens of one image stand for.

    Attributes:
        weights: (M, P) float64, row m = weight of every patch in survivor m (averaging maps: rows sum to 1).
        anchor: (M,) the patch in whose place each survivor stands.
        grid: (height, width) of the patches, P = height * width.
    """

    weights: Tensor
    anchor: Tensor
    grid: tuple[int, int]

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

    Attributes:
        steps: the reductions of the last prefill in order: encoder first, then LLM.
        grid: (height, width) of an image's patches; cls_tokens: 1 if the tower has CLS.
        images_per_row: number of images in each prompt of the batch.
    """

    grid: tuple[int, int]
    cls_tokens: int
    steps: list[Step] = field(default_factory=list)
    images_per_row: list[int] = field(default_factory=list)
    _encoder_image: list[int] = field(default_factory=list)

    def start(self, encoder_steps: list[Step], images_per_row: list[int], encoder_image: list[int]) -> None:
        """A new prefill begins. `encoder_image[i]` is the row of image i in the encoder's batch (beams share one)."""
        self.steps, self.images_per_row, self._encoder_image = list(encoder_steps), images_per_row, encoder_image

    def sources(self, image: int = 0, steps: int | None = None) -> Sources:
        """Provenance of image number `image` (in the order of the prompts) after the first `steps` reductions.

        Args:
            steps: how many entries of `self.steps` to follow; None for all.

        Raises:
            LabError: no such image.
        """
        count = len(self._encoder_image)
        if not 0 <= image < count:
            raise LabError(f"image must be between 0 and {count - 1}, got {image}" if count else "the trace is empty")
        patches, cls_tokens = self.grid[0] * self.grid[1], self.cls_tokens
        weights = torch.eye(patches + cls_tokens, dtype=torch.float64)
        anchor = torch.arange(-cls_tokens, patches)
        encoder = [step for step in self.steps[:steps] if step.stage != "llm"]
        for step in encoder:
            weights, anchor = _follow(step.map, self._encoder_image[image], weights, anchor)
        order = anchor.argsort()[cls_tokens:]  # the LLM sees survivors in the order of their places, without CLS
        weights, anchor = weights[order][:, cls_tokens:], anchor[order]
        for step in self.steps[:steps][len(encoder) :]:
            weights, anchor = _follow(step.map, image, weights, anchor)
            order = anchor.argsort()
            weights, anchor = weights[order], anchor[order]
        return Sources(weights, anchor, self.grid)

    def __repr__(self) -> str:
        return "Trace(\n" + "".join(f"  {step}\n" for step in self.steps) + ")"


def _follow(reduction: TokenMap, row: int, weights: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """Compose one more map: (M, P) weights and (M,) anchors."""
    return reduction.matrix()[row].cpu() @ weights, anchor[reduction.anchor[row].cpu()]
