"""LLaVA-PruMerge: after the encoder, keep what CLS attends to most and add its nearest neighbours to it."""

import torch
from torch import Tensor

from illava_lab.method import (
    Keep,
    LabError,
    Paper,
    Stage,
    Strategy,
    TokenMap,
    Tokens,
    add_at,
    one_of,
    ranking,
    register,
    unit,
)  # fmt: skip


def _patches(tokens: Tokens) -> Tensor:
    """(B, N) bool: all but CLS."""
    return ~tokens.protected  # none is, where nothing was said of it


@register
class PruMerge(Strategy):
    """Score by one head as wide as the model, ``a = softmax(q_CLS K^T / sqrt C)``, at the last encoder layer used.

    1. The patches with the highest a are selected.
    2. Each takes in its nearest patches, selected or not, by cosine of keys: ``y_i = x_i + sum_{j in NN(i)} a_j x_j``.
    3. One token more, the last, gathers what was not selected: ``y = sum_j a_j x_j``. It stands in the place of the
       highest-scored of those. A single slot is a selected patch; the gathered token comes with the second.

    Slots are CLS, selected patches by falling score, gathered token; the lab gives the LLM all by place in the image.

    Args:
        decides: "image" is the reference: each picture keeps as many patches as are outliers of a (`outliers`), and the
            gathered token. "schedule" is ours: all keep equally many. Outliers are the highest-scored patches, so with
            as many the choice is that of the reference.
        typical: with "image", the share of tokens that pictures keep by themselves, on the mean (`il.calibrate` finds
            it): they then keep more or fewer in proportion, as many on the mean as the schedule says (ours). 0 leaves
            their own number, whatever the schedule says.
        merge: "sum" is the reference, whose division is commented out; "mean" is ours: weights of a slot sum to 1.
        neighbours: how many a selected patch takes in.

    The reference takes a and keys of the layer after the one that the LLM sees, and merges its input. Here they are
    of the last layer used itself, and the reduction comes before its MLP.
    """

    name = "prumerge"
    paper = Paper("LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", "2403.15388", 2024)
    stages = ("encoder",)
    memory = "quadratic"

    merge: str = "sum"
    neighbours: int = 32
    decides: str = "schedule"
    typical: float = 0.0

    def __post_init__(self) -> None:
        one_of("merge", self.merge, ("sum", "mean"))
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, int) or self.neighbours < 0:
            raise LabError(f"neighbours must be a whole number of at least 0, got {self.neighbours!r}")
        one_of("decides", self.decides, ("schedule", "image"))
        if type(self.typical) not in (int, float) or not 0 <= self.typical <= 1:
            raise LabError(f"typical must be a fraction from 0 to 1, got {self.typical!r}")

    @property
    def averages(self) -> bool:  # type: ignore[override]  # a setting decides
        return self.merge == "mean"

    @property
    def own_count(self) -> bool:  # type: ignore[override]  # a setting decides
        return self.decides == "image"

    def count(self, tokens: Tokens, keep: Keep) -> Tensor:
        patches = tokens.count - tokens.protected_count
        share = keep if isinstance(keep, float) else keep / patches
        own = self._selected(tokens).sum(dim=1) + 1
        if self.typical:
            own = (own.double() * (share / self.typical)).round_().long()
        return own.clamp(min(2, patches), patches) + tokens.protected_count

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        cls, patch, score = int(tokens.has_protected), _patches(tokens), tokens.wide_cls_attention.float()
        gathered = int(keep - cls > 1)
        selected, rest = self._order(tokens, score, keep - cls - gathered).tensor_split([keep - gathered], dim=1)

        keys = unit(tokens.wide_keys)
        similarity = torch.bmm(keys[tokens.row, selected], keys.transpose(1, 2)).nan_to_num_(nan=-torch.inf)
        similarity.scatter_(2, selected[..., None], -torch.inf)
        if cls:
            similarity.masked_fill_(tokens.protected[:, None], -torch.inf)
        many = min(self.neighbours, tokens.count - 1 - cls)
        near = similarity.argsort(dim=2, descending=True, stable=True)[..., :many]
        slot = torch.arange(keep - gathered, dtype=torch.long, device=near.device)[:, None].expand_as(near).flatten(1)
        source, paid = near.flatten(1), score.nan_to_num() * patch
        weight = paid.gather(1, source) * patch.gather(1, selected).gather(1, slot)
        own = torch.ones_like(selected, dtype=score.dtype)
        anchor = torch.cat([selected, rest[:, :gathered]], dim=1)
        if gathered:
            own = torch.cat([own, paid.gather(1, rest[:, :1])], dim=1)
            source, weight = torch.cat([source, rest[:, 1:]], 1), torch.cat([weight, paid.gather(1, rest[:, 1:])], 1)
            slot = torch.cat([slot, torch.full_like(rest[:, 1:], keep - 1)], dim=1)
        if self.merge == "mean":
            total = add_at(own, tokens.row, slot, weight).clamp_min_(torch.finfo(own.dtype).tiny)
            own, weight = own / total, weight / total.gather(1, slot)
        return TokenMap(anchor, tokens.count, own, slot, source, weight, score, tokens.row)

    def _order(self, tokens: Tokens, score: Tensor, count: int) -> Tensor:
        """(B, N) tokens, protected ones first, then the `count` patches to select."""
        return ranking(score, tokens)

    def _selected(self, tokens: Tokens) -> Tensor:
        """(B, N) bool: patches that the reference selects."""
        return self.outliers(tokens)

    @staticmethod
    def outliers(tokens: Tokens) -> Tensor:
        """(B, N) bool: patches with ``a > Q3 + 1.5 (Q3 - Q1)`` in their image, which the reference would select."""
        # In float64 quarters of float32 numbers are exact, so rounding makes nothing an outlier.
        score = tokens.wide_cls_attention.float().double().masked_fill(~_patches(tokens), torch.nan)
        low, high = (score.nanquantile(q, dim=1, keepdim=True) for q in (0.25, 0.75))
        return score > high + 1.5 * (high - low)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1]


@register
class PruMergePlus(PruMerge):
    """PruMerge that also selects patches spread over the image: outliers first, then every q-th patch.

    With o outliers among N patches, ``q = (N // o) // 3``, and patches 0, q, 2q, ... < N-1 follow in raster order. When
    `keep` has less room than that they are thinned out evenly, when it has more the highest-scored of the rest fill
    it; both are ours, and with as many as the reference takes the choice is that of the reference. Where the
    reference fails (no outlier, or so many that q is 0), q counts one outlier, and is at least 1.
    """

    name = "prumerge+"

    def _selected(self, tokens: Tokens) -> Tensor:
        outlier = self.outliers(tokens)
        return outlier | self._spread(tokens, outlier, outlier.sum(1, keepdim=True))

    @staticmethod
    def _spread(tokens: Tokens, outlier: Tensor, found: Tensor) -> Tensor:
        """(B, N) bool: every q-th patch, but for outliers."""
        patch, score = _patches(tokens), tokens.wide_cls_attention
        patches, place = patch.sum(1, keepdim=True), patch.cumsum(1) - 1
        stride = (patches // found.clamp_min(1) // 3).clamp_min(1)
        return patch & ~outlier & ~score.isnan() & (place % stride == 0) & (place < patches - 1)

    def _order(self, tokens: Tokens, score: Tensor, count: int) -> Tensor:
        outlier = self.outliers(tokens)
        found = outlier.sum(1, keepdim=True)
        spread, raster = self._spread(tokens, outlier, found), torch.arange(0, -tokens.count, -1, device=score.device)
        room, total = (count - found).clamp_min(0), spread.sum(1, keepdim=True).clamp_min(1)
        spread = spread & ((spread.cumsum(1) - 1) * room % total < room)
        order = ranking(torch.where(spread, raster.to(score.dtype), score), tokens)
        rank = 3 * tokens.protected.int() + 2 * outlier.int() + spread.int()
        return order.gather(1, rank.gather(1, order).argsort(dim=1, descending=True, stable=True))
