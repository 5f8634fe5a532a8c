"""VisPruner: at the end of the encoder, keep the patches CLS attends to, and a diverse rest."""

import torch
from torch import Tensor

from illava_lab.method import LabError, Paper, Stage, Strategy, TokenMap, Tokens, ranking, register, unit

PER_PASS = 8  # most patches removed in one pass


@register
class VisPruner(Strategy):
    """Of T patches to keep, the ``int(T important_ratio)`` that CLS attends to most are kept as they are.

    The others, in falling order of attention, are thinned out until T are left in all. In each pass, split the list by
    parity into a (even places) and b (odd places); remove the r patches of a with the highest ``max_b cos(x_a, x_b)``,
    r at most 8. The next list is the rest of a, most similar first, then b.

    Args:
        important_ratio: part of T kept by attention.

    The reference fails on lists of odd length and where r exceeds half of the list; here a then has one patch more, and
    r is at most half (ours). It counts ``T = round(N (1 - rate))``, without CLS. It compares the output of the last
    layer used; here that layer's states before its MLP. Needs a tower with a CLS token (CLIP).
    """

    name = "vispruner"
    paper = Paper(
        "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs", "2412.01818", 2025
    )
    stages = ("encoder",)
    kind = "prune"
    memory = "quadratic"

    important_ratio: float = 0.5

    def __post_init__(self) -> None:
        number = isinstance(self.important_ratio, (int, float)) and not isinstance(self.important_ratio, bool)
        if not number or not 0 <= self.important_ratio <= 1:
            raise LabError(f"important_ratio must be a number from 0 to 1, got {self.important_ratio!r}")

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        score = tokens.cls_attention
        order = ranking(score, tokens)
        important = tokens.protected_count + int(tokens.room(keep) * self.important_ratio)
        rest = self._diverse(tokens, order[:, important:], keep - important)
        anchor = torch.cat([order[:, :important], rest], dim=1).sort(dim=1).values
        return TokenMap.keep(anchor, tokens.count, score=score)

    @staticmethod
    def _diverse(tokens: Tokens, rest: Tensor, count: int) -> Tensor:
        """(B, count) of the indices `rest`, thinned out pass by pass."""
        if count == 0:
            return rest[:, :0]
        x, row = unit(tokens.hidden), tokens.row
        nan = x.isnan().any(dim=2)
        similarity = torch.bmm(x, x.transpose(1, 2)).masked_fill_(nan[:, None], -torch.inf)
        while rest.shape[1] > count:
            a, b = _without_nan_in_b(nan, rest)
            remove = min(PER_PASS, rest.shape[1] - count, rest.shape[1] // 2)
            nearest = similarity[row[..., None], a[..., None], b[:, None]].amax(dim=2)
            stay = nearest.argsort(dim=1, descending=True, stable=True)[:, remove:]
            rest = torch.cat([a.gather(1, stay), b], dim=1)
        return rest

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1]


def _without_nan_in_b(nan: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """The list split by parity, exchanged where only b has NaN: only what is in a can be removed."""
    a, b = rest[:, ::2], rest[:, 1::2]
    broken = nan.gather(1, rest)
    beside, last = a.split([b.shape[1], a.shape[1] - b.shape[1]], dim=1)
    swap = broken[:, 1::2] > broken[:, : 2 * b.shape[1] : 2]
    return torch.cat([torch.where(swap, b, beside), last], dim=1), torch.where(swap, beside, b)
