"""iLLaVA as released for ICLR 2026: drop, shift or cluster the redundant tokens, in the encoder and in the LLM."""

import torch
from torch import Tensor

from illava_lab.method import (
    FewSums,
    Keep,
    LabError,
    Paper,
    Stage,
    Strategy,
    Sums,
    TokenMap,
    Tokens,
    one_of,
    ranking,
    register,
    row_index,
    unit,
    wide,
)  # fmt: skip

NEAREST = 5  # redundant tokens that feed one recycling token


@register
class ILLaVA2026(Strategy):
    """Keep p of n tokens. With tokens ranked by score, the modes differ in what becomes of ranks p..n-1, the set D.

    Args:
        mode: "drop" drops D. "shift" ignores scores: it keeps the first p tokens in raster order and folds the others
            into the last of them, ``x_{p-1} = x_{p-1}/2 + x_p/4 + ... + 2^-r x_{n-2} + 2^-r x_{n-1}``, r = n-p.
            "cluster" (the default of the code) turns the last ``max(1, round(p * recycling))`` kept ranks c into
            recycling tokens: ``x_c = x_c/2 + 1/2 sum_j alpha_j x_j`` over the 5 tokens j of D with the largest dot
            product with x_c, ``alpha = softmax(<x_c, x_j> / sqrt C)``. A token of D may feed several c, or none.
            "nearest" is ours, a natural reading of clustering: each token of D joins the kept token of highest
            cosine, averages weighted by the patches each stands for.
        score: "attention" is what the paper documents, its equation 3; "lse" is what the code computes (see `illava`).
        recycling: fraction of the kept tokens that recycle in mode "cluster" (`illava_pc_ratio` in the code).
        cells: where a tower makes one visual token of each cell of patches (Qwen-VL). "mean" is ours: cells are ranked
            by the mean over their patches, and as many stay as were asked for. "touched" is the code: *patches* are
            ranked, ``round(patches keep)`` of them, down to whole cells, are to stay, and with them every cell that one
            of them is in. Of 0.85 that leaves 0.92 to 1: what was asked for is nominal, and the picture decides. The
            code merges patches before it completes cells; here cells are merged. Elsewhere a patch is a cell.
        groups: in the encoder, keep whole 2x2 groups of the grid, those with the highest-scored members. The code
            does it by expanding its choice to every group that a kept token touches, because the patch merger of
            Qwen-VL needs whole groups; with keep 0.85 that undoes almost all of the reduction. Off by default for
            that reason. The expansion ignores `keep`; here `keep` holds, and 4G tokens are the G groups that an
            expansion to G groups has. Merging after this choice, and cutting the last group if need be, is ours.

    The code merges in the dtype of the model; here in float32, cast once. In the LLM the code for Qwen3-VL reduces each
    frame of a video on its own; here the tokens of all frames are ranked together, unless it is composed with
    ``frames="each"`` (`illava_lab.compose`).
    """

    name = "illava-2026"
    paper = Paper(
        "iLLaVA: An Image is Worth Fewer Than 1/3 Input Tokens in Large Multimodal Models", "2412.06263", 2026
    )

    mode: str = "cluster"
    score: str = "attention"
    recycling: float = 0.05
    groups: bool = False
    cells: str = "mean"

    memory = "quadratic"

    def __post_init__(self) -> None:
        one_of("mode", self.mode, ("drop", "shift", "cluster", "nearest"))
        one_of("score", self.score, ("attention", "lse"))
        one_of("groups", self.groups, (True, False))
        one_of("cells", self.cells, ("mean", "touched"))
        if type(self.recycling) not in (int, float) or not 0 <= self.recycling <= 1:
            raise LabError(f"recycling must be a fraction from 0 to 1, got {self.recycling!r}")

    @property
    def own_count(self) -> bool:  # type: ignore[override]  # a setting decides
        return self.cells == "touched"

    def count(self, tokens: Tokens, keep: Keep) -> Tensor | None:
        if tokens.stage == "llm":
            return None
        score = self._of_patches(tokens).masked_fill(tokens.protected[..., None], -torch.inf)
        patches, cell = (tokens.count - tokens.protected_count) * score.shape[2], score.shape[2]
        wanted = keep * cell if isinstance(keep, int) else round(patches * keep) // cell * cell
        order = score.flatten(1).nan_to_num(nan=-torch.inf).argsort(dim=1, descending=True, stable=True)
        touched = (order.argsort(dim=1) < max(cell, wanted)).unflatten(1, score.shape[1:]).any(dim=2)
        return touched.sum(dim=1) + tokens.protected_count

    def _of_patches(self, tokens: Tokens) -> Tensor:
        """(B, N, K) the score of each patch of each cell."""
        return tokens.patch_lse if self.score == "lse" else tokens.patch_attention

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        score, order = self._ranked(tokens, keep)
        kept, dropped = order.split([keep, tokens.count - keep], dim=1)
        anchor, rank = kept.sort(dim=1)
        free = tokens.room(keep)  # slots that are not of CLS, which takes no part in merging
        if self.mode == "drop" or free == 0:
            return TokenMap.keep(anchor, tokens.count, score)
        if self.mode == "shift":
            sums = self._shifted(tokens, order[:, keep - 1 :], rank)
        elif self.mode == "cluster":
            sums = self._clustered(tokens, anchor, rank, dropped.sort(dim=1).values, free)
        else:
            return self._nearest(tokens, anchor, dropped.sort(dim=1).values, score)
        return FewSums(anchor, tokens.count, score=score, row=tokens.row, sums=sums)

    def _clustered(self, tokens: Tokens, anchor: Tensor, rank: Tensor, dropped: Tensor, free: int) -> Sums:
        dtype = wide(tokens.hidden.dtype)
        slot = rank.topk(max(1, min(free, round(free * self.recycling))), dim=1).indices
        target = tokens.hidden[tokens.row, anchor.gather(1, slot)].to(dtype)
        similarity = torch.bmm(target, tokens.hidden[tokens.row, dropped].to(dtype).transpose(1, 2))
        # NaN would be the nearest to all; a number this small still has a softmax where nothing else is there.
        similarity.div_(target.shape[2] ** 0.5).nan_to_num_(nan=torch.finfo(dtype).min)
        value, place = similarity.sort(dim=2, descending=True, stable=True)
        share = value[..., :NEAREST].softmax(dim=2) / 2
        return Sums(slot, dropped[row_index(dropped, 2), place[..., :NEAREST]], share, own=0.5)

    @staticmethod
    def _shifted(tokens: Tokens, last: Tensor, rank: Tensor) -> Sums:
        """What is left when the last two tokens are averaged again and again, until `last` is one."""
        dtype, dropped = wide(tokens.hidden.dtype), last.shape[1] - 1
        halved = torch.arange(-1, -dropped - 2, -1, dtype=dtype, device=last.device).clamp_min_(-dropped)
        return Sums(rank.argmax(dim=1, keepdim=True), last, halved.exp2_())

    @staticmethod
    def _nearest(tokens: Tokens, anchor: Tensor, dropped: Tensor, score: Tensor | None) -> TokenMap:
        states = unit(tokens.hidden)
        similarity = torch.bmm(states[tokens.row, dropped], states[tokens.row, anchor].transpose(1, 2))
        similarity.nan_to_num_(nan=-torch.inf)
        if tokens.has_protected:
            similarity.masked_fill_(tokens.protected.gather(1, anchor)[:, None], -torch.inf)
        return TokenMap.merge_into(anchor, similarity.argmax(dim=2), dropped, tokens.size, score, tokens.row)

    def _ranked(self, tokens: Tokens, keep: int) -> tuple[Tensor | None, Tensor]:
        """(B, N) scores, None where the mode has none, and (B, N) tokens by rank; the first `keep` stay."""
        if self.mode == "shift":
            raster = torch.arange(tokens.count, 0, -1, dtype=torch.float32, device=tokens.hidden.device)
            return None, ranking(raster.expand(tokens.batch, -1), tokens)
        if self.cells == "touched" and tokens.stage == "encoder":
            score = self._of_patches(tokens).amax(dim=2)
        elif self.score == "lse":
            score = tokens.lse
        else:
            score = tokens.attention_received if tokens.stage == "encoder" else tokens.text_attention
        order = ranking(score, tokens)
        if not self.groups or tokens.stage == "llm":
            return score, order
        grouped = _group_ranks(score, tokens, order).gather(1, order)  # places that groups give, in the order of scores
        return score, order.gather(1, (grouped >= keep).to(torch.int8).argsort(dim=1, stable=True))

    def layers(self, stage: Stage, depth: int) -> list[int]:
        """Encoder as iLLaVA; LLM as the setting for Qwen3-VL-8B that keeps a third: layers 19, 21, 23, 25 of 36."""
        if stage == "encoder":
            return super().layers(stage, depth)
        return sorted({min(max(1, round(depth * layer / 36)), depth - 1) for layer in (19, 21, 23, 25)})


def _group_ranks(score: Tensor, tokens: Tokens, order: Tensor) -> Tensor:
    """(B, N) rank of each token when 2x2 groups are ranked by their best token, and tokens within their group."""
    if tokens.grid is None:
        raise LabError("groups=True needs the grid of the patches, which this place has not")
    height, width = tokens.grid
    place, columns = tokens.position.clamp_min(0), (width + 1) // 2
    group = place // width // 2 * columns + place % width // 2
    own = score.masked_fill(tokens.protected | score.isnan(), -torch.inf)
    best = own.new_full((tokens.batch, (height + 1) // 2 * columns), -torch.inf)
    best = best.scatter_reduce(1, group, own, "amax").gather(1, group)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))
    order = order.gather(1, best.gather(1, order).argsort(dim=1, descending=True, stable=True))
    return ranking(-order.argsort(dim=1).float(), tokens).argsort(dim=1)
