"""What a strategy's speed is held against."""

from __future__ import annotations

from dataclasses import field

import torch

from illava_lab.method.ranking import highest
from illava_lab.method.strategy import Strategy
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import STAGES, Tokens


class Limit(Strategy):
    """What a strategy's speed is held against: it drops tokens by a list that was made once, before the clock ran.

    It neither scores nor merges, but goes through the same hooks: what those cost is in both, and is seen in the
    difference between the bare model and this.
    """

    name = "limit"
    kind = "prune"
    stages = STAGES
    first_llm_layer = 0

    lists: dict[tuple, TokenMap] = field(default_factory=dict, repr=False)

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        place = (tokens.stage, tokens.layer, tokens.batch, tokens.count, keep)
        if place not in self.lists:
            score = torch.rand(tokens.count, generator=torch.Generator().manual_seed(0)).to(tokens.hidden.device)
            kept = highest(score.expand(tokens.batch, -1), keep, tokens)
            self.lists[place] = TokenMap.keep(kept, tokens.count)
        return self.lists[place]
