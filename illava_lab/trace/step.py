"""One reduction: where it happened, and its map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Stage


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
