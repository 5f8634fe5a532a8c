"""Random pruning: the baseline that every method should beat, and several do not."""

import torch
from torch import Tensor

from illava_lab.method import LabError, Scorer, Tokens, host_made, register


@register
class Random(Scorer):
    """Keep tokens drawn at random, without repetition.

    The draw depends on the seed, the stage and the layer only: the same places for every sample of a batch, so that
    a batch equals its samples alone. Compare several seeds to see the spread.

    Args:
        seed: of the draw.
    """

    name = "random"
    first_llm_layer = 0

    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise LabError(f"seed must be a whole number from 0 to 2**32 - 1, got {self.seed!r}")

    def score(self, tokens: Tokens) -> Tensor:
        place = 2 * tokens.layer + (tokens.stage == "llm")
        (score,) = _drawn(tokens.hidden, self.seed * 1_000_003 + place, tokens.count)
        return score.expand(tokens.batch, -1)


@host_made
def _drawn(seed: int, count: int) -> tuple[Tensor]:
    draw = torch.Generator("cpu").manual_seed(seed)
    return (torch.rand(count, generator=draw, dtype=torch.float32, device="cpu"),)
