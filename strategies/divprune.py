"""DivPrune: keep the most diverse subset of the visual tokens."""

import torch
from torch import Tensor

from illava_lab.method import Paper, Stage, Strategy, TokenMap, Tokens, picked, register, unit


@register
class DivPrune(Strategy):
    """Greedy max-min diversity over ``D_ij = 1 - cos(x_i, x_j)``; neither attention nor text is looked at.

    The first pick is the token farthest from its nearest neighbour. Each next pick is
    ``argmax_j min_{i picked} D_ij``, until enough are picked; the rest is dropped.

    The reference prunes once, at the input of the LLM; here at the end of the encoder (its home, which costs the same),
    at that input, or both. It counts ``int(round(ratio N))``, computes D in half precision (here float32),
    and may pick a token twice when only duplicates are left (here never). CLS is kept and takes no part: ours.
    """

    name = "divprune"
    paper = Paper("DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", "2503.02175", 2025)
    kind = "prune"
    home = ("encoder",)
    first_llm_layer = 0
    memory = "quadratic"

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        last = tokens.hidden.isnan().any(dim=2)  # nobody's neighbour, picked last; so are protected ones
        last = last.logical_or_(tokens.protected) if tokens.has_protected else last
        distance = self._distance(tokens, last)
        itself = distance.diagonal(dim1=1, dim2=2)
        itself.fill_(torch.inf)
        pick = distance.amin(dim=2).masked_fill_(last, -torch.inf).argmax(dim=1)

        itself.fill_(-torch.inf)  # so that nothing is picked again
        every = tokens.row[:, 0]
        # Below every distance, so they are picked last, if at all; `picked` keeps protected ones all the same.
        gap, picks = torch.full_like(itself, torch.inf).masked_fill_(last, -1.0), [pick]
        for _ in range(keep - 1):
            gap = torch.minimum(gap, distance[every, pick])
            pick = gap.argmax(dim=1)
            picks.append(pick)
        return picked(picks, keep, tokens)

    @staticmethod
    def _distance(tokens: Tokens, last: Tensor) -> Tensor:
        """(B, N, N), exactly symmetric but for `last`, so that two tokens nearest to each other tie."""
        x = unit(tokens.hidden)
        cosine = torch.bmm(x, x.transpose(1, 2))
        distance = torch.maximum(cosine, cosine.transpose(1, 2)).neg_().add_(1)
        return distance.masked_fill_(last[:, None, :], torch.inf).nan_to_num_(0.0, posinf=torch.inf)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1 if stage == "encoder" else 0]
