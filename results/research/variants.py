"""Tally with other ingredients, one switch for each: what `run.py` compares. Defaults are those of the method."""

from __future__ import annotations

import torch
from illava_lab.strategies.tally import Tally
from torch import Tensor

from illava_lab.method import Stage, TokenMap, Tokens, highest, unit

LAYERS = {"first half": (0, 1 / 2), "all": (0, 1), "middle half": (1 / 4, 3 / 4), "first quarter": (0, 1 / 4)}


class Variant(Tally):
    """Tally, but for what its settings say.

    Args:
        shield: the weight of step 1; 0 leaves it out.
        by: what says which tokens are distinct: how unlike the mean their states or keys are, or the attention that
            they receive, alone or times the length of their value.
        near: what similarity loses for each patch of distance between the two.
        tower, llm: whether sizes count in the attention of each.
        raters: whose attention chooses in the LLM, "all" text after the image or its "last" token.
        rest: in the LLM, "drop" the others or "merge" each with the token that stays and is most like it.
        share: of the reduction that the encoder does.
        encoder_layers, llm_layers: where; the latter as fractions of the depth.
    """

    name = "variant"

    shield: float = 1.0
    by: str = "states"
    near: float = 0.0
    tower: bool = True
    llm: bool = True
    raters: str = "all"
    rest: str = "drop"
    share: float = 0.5
    encoder_layers: str = "first half"
    llm_layers: tuple[float, ...] = (1 / 3, 2 / 3)

    @property
    def proportional_attention(self) -> bool:
        return self.tower

    @property
    def proportional_in_llm(self) -> bool:
        return self.llm

    @property
    def encoder_share(self) -> float:
        return self.share

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if tokens.stage == "encoder" or keep == tokens.count:
            return super().map(tokens, keep)
        score = tokens.text_attention if self.raters == "last" else tokens.text_rows.mean(dim=1)
        anchor = highest(score, keep, tokens)
        if self.rest == "drop":
            return TokenMap.keep(anchor, tokens.count, score)
        stays = torch.zeros_like(score, dtype=torch.int8).scatter(1, anchor, 1)
        gone = stays.argsort(dim=1, stable=True)[:, : tokens.count - keep]
        states = unit(tokens.hidden)
        similarity = torch.bmm(states[tokens.row, gone], states[tokens.row, anchor].transpose(1, 2))
        return TokenMap.merge_into(anchor, similarity.argmax(dim=2), gone, tokens.size, score, tokens.row)

    def _similarity(self, tokens: Tokens) -> Tensor:
        similarity = super()._similarity(tokens)
        if self.near and tokens.grid is not None:
            place = torch.stack([tokens.position // tokens.grid[1], tokens.position % tokens.grid[1]], dim=2).float()
            similarity -= self.near * torch.cdist(place[:, ::2], place[:, 1::2])
        return similarity

    def _distinct(self, tokens: Tokens) -> Tensor:
        if self.by == "states":
            return super()._distinct(tokens) * self.shield
        if self.by == "keys":
            states, share = unit(tokens.keys), tokens.size.masked_fill(tokens.protected, 0.0)
            score = -torch.bmm(states, (share[:, None] @ states).transpose(1, 2))[..., 0]
        else:
            score = tokens.attention_received
            score = score * tokens.values.norm(dim=2) if self.by == "value norm" else score
        rank = score.argsort(dim=1, stable=True).argsort(dim=1)
        return rank.to(score.dtype) / tokens.count * self.shield

    def layers(self, stage: Stage, depth: int) -> list[int]:
        if stage == "encoder":
            first, last = LAYERS[self.encoder_layers]
            return list(range(round(depth * first), max(1, round(depth * last))))
        return sorted({min(max(1, round(depth * part)), depth - 1) for part in self.llm_layers})
