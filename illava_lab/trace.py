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
        rows: images (encoder) or prompts (LLM) it was done for, as indices into the batch; prompts with different
            numbers of visual tokens are reduced in separate steps.
        map: the TokenMap; row b of it belongs to rows[b]. It includes CLS where the tower has one.
        before, after: visual tokens per row, CLS not counted.
    """

    stage: Stage
    layer: int
    rows: tuple[int, ...]
    map: TokenMap
    before: int
    after: int

    @property
    def scores(self) -> Tensor | None:
        """(rows, N) what the strategy ranked by, or None if it does not rank."""
        return self.map.score

    def __repr__(self) -> str:
        return f"Step({self.stage} layer {self.layer}: {self.before} -> {self.after} visual tokens, rows {self.rows})"


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

    def sources(self, image: int = 0, steps: int | None = None) -> Sources:
        """Provenance of image number `image` (in the order of pixel_values) after the first `steps` reductions.

        Args:
            steps: how many entries of `self.steps` to follow; None for all.

        Raises:
            LabError: no such image.
        """
        count = sum(self.images_per_row)
        if not 0 <= image < count:
            raise LabError(f"image must be between 0 and {count - 1}, got {image}" if count else "the trace is empty")
        row = next(r for r in range(len(self.images_per_row)) if image < sum(self.images_per_row[: r + 1]))
        first = sum(self.images_per_row[:row])  # first image of this prompt
        siblings = range(first, first + self.images_per_row[row])
        followed = self.steps[:steps]

        per_image = [self._encoder_sources(i, followed) for i in siblings]
        weights = torch.block_diag(*[weight for weight, _ in per_image])
        patches = self.grid[0] * self.grid[1]
        anchor = torch.cat([at + patches * n for n, (_, at) in enumerate(per_image)])
        for step in followed:
            if step.stage == "llm" and row in step.rows:
                b = step.rows.index(row)
                # The LLM sees survivors in the order of their places, whatever order a strategy gave its slots.
                order = step.map.anchor[b].argsort().cpu()
                weights = step.map.matrix()[b].cpu()[order] @ weights
                anchor = anchor[step.map.anchor[b].cpu()[order]]
        own = anchor // patches == image - first
        columns = slice((image - first) * patches, (image - first + 1) * patches)
        return Sources(weights[own][:, columns], anchor[own] % patches, self.grid)

    def _encoder_sources(self, image: int, steps: list[Step]) -> tuple[Tensor, Tensor]:
        """(M, P) weights and (M,) anchors after the encoder, survivors in raster order, CLS left out."""
        total = self.grid[0] * self.grid[1] + self.cls_tokens
        weights, anchor = torch.eye(total, dtype=torch.float64), torch.arange(total)
        for step in steps:
            if step.stage == "encoder" and image in step.rows:
                b = step.rows.index(image)
                weights = step.map.matrix()[b].cpu() @ weights
                anchor = anchor[step.map.anchor[b].cpu()]
        order = anchor.argsort()[self.cls_tokens :]
        return weights[order][:, self.cls_tokens :], anchor[order] - self.cls_tokens

    def __repr__(self) -> str:
        return "Trace(\n" + "".join(f"  {step}\n" for step in self.steps) + ")"
