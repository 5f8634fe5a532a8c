"""DivPrune: keep the most diverse subset of the visual tokens."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from illava_lab.method import Paper, Stage, Strategy, TokenMap, Tokens, highest, register


@register
class DivPrune(Strategy):
    """Greedy max-min diversity over ``D_ij = 1 - cos(x_i, x_j)``; neither attention nor text is looked at.

    The first pick is the token farthest from its nearest neighbour. Each next pick is
    ``argmax_j min_{i picked} D_ij``, until enough are picked; the rest is dropped.

    The reference prunes once, at the input of the LLM; here at the end of the encoder (its home, which costs the same),
    before layer 1 of the LLM, or both. It counts ``int(round(ratio N))``, computes D in half precision (here float32),
    and may pick a token twice when only duplicates are left (here never). CLS is kept and takes no part: ours.
    """

    name = "divprune"
    paper = Paper("DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", "2503.02175", 2025)
    kind = "prune"
    home = ("encoder",)
    memory = "quadratic"

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        last = tokens.protected | tokens.hidden.isnan().any(dim=2)  # nobody's neighbour, picked last
        distance = self._distance(tokens, last)
        itself = torch.eye(tokens.count, dtype=torch.bool, device=distance.device)
        to_nearest = distance.masked_fill(itself, torch.inf).amin(dim=2)
        pick = to_nearest.masked_fill(last, -torch.inf).argmax(dim=1, keepdim=True)

        # Below every distance, so they are picked last, if at all; `highest` keeps protected ones all the same.
        gap = torch.full_like(to_nearest, torch.inf).masked_fill(last, -1.0)
        score = torch.zeros_like(gap)
        for left in range(keep, 0, -1):
            score.scatter_(1, pick, float(left))
            row = distance.gather(1, pick[..., None].expand(-1, -1, tokens.count))[:, 0]
            gap = torch.minimum(gap, row).scatter(1, pick, -torch.inf)
            pick = gap.argmax(dim=1, keepdim=True)
        return TokenMap.keep(highest(score, keep, tokens), tokens.count, score=score)

    @staticmethod
    def _distance(tokens: Tokens, last: Tensor) -> Tensor:
        """(B, N, N), exactly symmetric, so that two tokens nearest to each other tie."""
        x = normalize(tokens.hidden.to(torch.promote_types(tokens.hidden.dtype, torch.float32)), dim=2)
        cosine = x @ x.transpose(1, 2)
        distance = 1 - torch.maximum(cosine, cosine.transpose(1, 2))
        distance = distance.masked_fill(last[:, None, :], torch.inf)
        return distance.nan_to_num(0.0, posinf=torch.inf)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1 if stage == "encoder" else min(1, depth - 1)]
