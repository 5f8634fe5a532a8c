"""FrameFusion: of a video merge tokens into the same place of the frame before, then prune by attention."""

import torch
from torch import Tensor

from illava_lab.method import (
    LabError,
    Paper,
    Stage,
    Strategy,
    TokenMap,
    Tokens,
    cosine_to,
    highest,
    register,
    same_place_before,
)  # fmt: skip


@register
class FrameFusion(Strategy):
    """Merge what stays alike over time; prune, where too little is alike, what receives least attention.

    1. ``s = cos(h, h')`` with the token h' at the same place of the frame before.
    2. The tokens of largest s join what h' has become: a run of them in time becomes the plain mean over the run and
       the token before it, at whose place it stands.
    3. In front of layer 0 no attention has run, and tokens are merged whatever their s. Later only those of
       ``s >= theta`` are, largest first; if more have to go, those go that receive least attention (mean over heads
       and all queries).

    The reference does one of the two at each layer: it merges all of ``s >= theta`` from layer 0 on, until fewer than a
    tenth are, then prunes once; a cost (0.3 of the tokens on the mean over layers) bounds both, so that videos decide
    how many go where. Here the schedule says that. Theirs is the place behind the attention of a layer, ours in front
    of the next; a token that no frame before has, and which still has to go in front of layer 0, is dropped, last
    tokens first (ours).

    Args:
        theta: the least cosine of what is merged; 0.6 is the authors', who choose it for each model.
    """

    name = "framefusion"
    paper = Paper(
        "FrameFusion: Combining Similarity and Importance for Video Token Reduction on Large Vision Language Models",
        "2501.01986",
        2025,
    )
    stages = ("llm",)
    media = ("video",)
    first_llm_layer = 0

    theta: float = 0.6

    def __post_init__(self) -> None:
        if isinstance(self.theta, bool) or not isinstance(self.theta, (int, float)) or not -1 <= self.theta <= 1:
            raise LabError(f"theta must be a cosine, from -1 to 1, got {self.theta!r}")

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        before = same_place_before(tokens)
        stays = before < 0
        if tokens.has_protected:  # nothing joins these, nor do they join
            stays = stays | tokens.protected | tokens.protected.gather(1, before.clamp_min(0))
        alike = cosine_to(before.masked_fill(stays, -1), tokens, without=-2.0)
        merges = alike >= (-1.5 if tokens.layer == 0 else self.theta)
        rest = torch.zeros_like(alike) if tokens.layer == 0 else tokens.attention_received.to(alike.dtype)
        # What merges goes first, and of that what is most alike.
        score = torch.where(merges, -4 - alike, rest).masked_fill(alike.isnan(), torch.nan)
        anchor = highest(score, keep, tokens)
        return self._fold(tokens, anchor, merges, before, score)

    @staticmethod
    def _fold(tokens: Tokens, anchor: Tensor, merges: Tensor, before: Tensor, score: Tensor) -> TokenMap:
        """Tokens that merge, and have no slot, join the nearest before them that has or that does not merge."""
        keep, count = anchor.shape[1], tokens.count
        slot_of = torch.full_like(before, -1).index_put_((tokens.row, anchor), _numbers(keep, anchor))
        goes = merges & (slot_of < 0)
        root = torch.where(goes, before, _numbers(count, before))
        for _ in range((tokens.frames or (1, 1))[0].bit_length()):  # each doubles how far it reaches
            root = root.gather(1, root)
        slot = slot_of.gather(1, root)
        source = (slot_of >= 0).to(torch.int8).argsort(dim=1, stable=True)[:, : count - keep]
        # One for what is left or joins, zero for what is dropped.
        one = (slot >= 0).to(torch.float32)
        return TokenMap.merge_into(anchor, slot.gather(1, source).clamp_min(0), source, one, score, tokens.row)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [0, 1][:depth]


def _numbers(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.long, device=like.device).expand(like.shape[0], -1)
