"""Random pruning: the baseline that every method should beat, and several do not."""

import torch
from torch import Tensor

from illava_lab.method import LabError, Scorer, Tokens, register


@register
class Random(Scorer):
    """Keep tokens drawn at random, without repetition.

    The draw depends on the seed, the stage and the layer only: the same places for every sample of a batch, so that
    a batch equals its samples alone. Compare several seeds to see the spread.

    Args:
        seed: of the draw.
    """

    name = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise LabError(f"seed must be a whole number from 0 to 2**32 - 1, got {self.seed!r}")

    def score(self, tokens: Tokens) -> Tensor:
        place = 2 * tokens.layer + (tokens.stage == "llm")
        draw = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
        score = torch.rand(tokens.count, generator=draw)
        return score.to(tokens.hidden.device).expand(tokens.batch, -1)
