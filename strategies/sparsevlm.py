"""SparseVLM: in the LLM, the text tokens that look at the image rate the visual tokens."""

from math import sqrt
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from illava_lab.method import (
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
    wide,
)  # fmt: skip

# Kept tokens and clusters after the three reductions in version 1.5, of 576, for 64, 96, 128 and 192 on average.
LISTS = np.array([[0, 0, 0], [82, 32, 18], [249, 55, 27], [312, 117, 39], [309, 204, 113], [576, 576, 576]]) / 576


@register
class SparseVLM(Strategy):
    """Keep the visual tokens with the highest ``s_j = mean_{u in raters} 1/H sum_h A_{K-1}[h, u, j]``.

    Raters are the text tokens u after the image with ``m_u = mean_i softmax_u(<v_i, t_u>)`` above the mean of m. Where
    none is (a single text token), all rate (ours).

    Args:
        recycle: also merge (versions 1.x). Of the d tokens not kept, the ``n = int(0.3 d) + 1`` with the highest score
            become ``c = int(n / 10) + 1`` means, by DPC-kNN clustering (`_clusters`); the rest is dropped.
        raters: "selected" as above, or "all" text tokens after the image (ours).

    The reference keeps k tokens and adds c clusters (k is 300, 200, 110 before layers 3, 7, 16 of 32, for 192 of 576
    on average); a budget is shared over the three as its published lists do (`LISTS`). Here k is the largest number for
    which k + c are the slots asked for, and where even k = 1 gives too many, there are fewer clusters (ours). Kept
    tokens come first, then the clusters by falling centre score, each in the place of its centre. The embeddings v and
    t are those that enter the LLM, so the raters stay the same. Version 1.0 derived k from the rank of the raters'
    attention. Version 2 does not recycle, debiases the attention for rotary positions and picks 14 heads; the last two
    are not done here.
    """

    name = "sparsevlm"
    paper = Paper(
        "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", "2410.04417", 2024
    )
    stages = ("llm",)

    recycle: bool = False
    raters: str = "selected"

    def __post_init__(self) -> None:
        one_of("recycle", self.recycle, (True, False))
        one_of("raters", self.raters, ("selected", "all"))

    @property
    def kind(self) -> Literal["prune", "merge"]:  # type: ignore[override]  # a setting decides
        return "merge" if self.recycle else "prune"

    @property
    def memory(self) -> Literal["linear", "quadratic"]:  # type: ignore[override]  # a setting decides
        return "quadratic" if self.recycle else "linear"  # clustering compares points with points

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        score = self._score(tokens)
        order = ranking(score, tokens)
        kept = _kept_beside_clusters(tokens, keep) if self.recycle else keep
        anchor = order[:, :kept].sort(dim=1).values
        if kept == keep:
            return TokenMap.keep(anchor, tokens.count, score=score)

        source = order[:, kept : kept + _recycled(tokens.count - kept)]
        centre, cluster = _clusters(tokens.hidden[tokens.row, source].to(wide(tokens.hidden.dtype)), keep - kept)
        share = torch.ones_like(source, dtype=wide(score.dtype))
        members = add_at(share.new_zeros(centre.shape), tokens.row, cluster, share, in_place=True)
        own = torch.cat([share.new_ones(anchor.shape), torch.zeros_like(members)], dim=1)  # centres are edges too
        anchor = torch.cat([anchor, source.gather(1, centre)], dim=1)
        share = members.reciprocal_().gather(1, cluster)
        return TokenMap(anchor, tokens.count, own, cluster.add_(kept), source, share, score, tokens.row)

    def _score(self, tokens: Tokens) -> Tensor:
        rows = tokens.text_rows
        if rows.shape[1] == 0:
            raise LabError("sparsevlm needs text after the image, this prompt has none")
        rows = rows.to(wide(rows.dtype))
        if self.raters == "all":
            return rows.mean(dim=1)
        image, text = (x.to(rows.dtype) for x in (tokens.embeddings, tokens.text_embeddings))
        relevance = torch.bmm(image, text.transpose(1, 2)).softmax(dim=2).mean(dim=1)
        raters = relevance > relevance.mean(dim=1, keepdim=True)
        raters = (raters | ~raters.any(dim=1, keepdim=True)).to(rows.dtype)
        return (rows * raters[..., None]).sum(dim=1) / raters.sum(dim=1, keepdim=True)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return sorted({min(max(1, round(depth * layer / 32)), depth - 1) for layer in (3, 7, 16)})

    def counts(self, stage: Stage, steps: int, before: int, after: int) -> list[int]:
        share = [np.interp(after / before, *LISTS[:, [2, column]].T) for column in range(3 - steps, 3)]
        return [max(after, round(before * part)) for part in share[:-1]] + [after]


def _recycled(dropped: int) -> int:
    return int(0.3 * dropped) + 1


def _kept_beside_clusters(tokens: Tokens, keep: int) -> int:
    """The largest k with k + c(N - k) == keep; where there is none, 1 (or the protected tokens)."""
    least = max(1, tokens.protected_count)
    fits = (k for k in range(keep, least, -1) if k + int(_recycled(tokens.count - k) / 10) + 1 == keep)
    return next(fits, least)


def _clusters(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Density peaks with k nearest neighbours: (B, count) centres among x (B, n, C) float32, (B, n) cluster of each.

    With ``D_ij = |x_i - x_j| / sqrt(C)``, the density is ``rho_i = exp(-mean of D_ij^2 over the k = count nearest)``, a
    point itself included, and delta_i is the distance to the nearest denser point (the largest of all D for the
    densest). Centres have the largest ``rho delta``; every other point joins the nearest centre. The reference breaks
    ties of density with noise; here the smaller index is denser, and logarithms are compared, which cannot underflow.
    """
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / sqrt(x.shape[2])
    log_density = -distance.sort(dim=2).values[..., :count].square().mean(dim=2)
    rank = log_density.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    nearest_denser = distance.masked_fill(rank[:, None, :] >= rank[..., None], torch.inf).amin(dim=2)
    delta = torch.minimum(nearest_denser, distance.amax(dim=(1, 2))[:, None])
    centre = (log_density + delta.log()).argsort(dim=1, descending=True, stable=True)[:, :count]
    row = torch.arange(len(x), dtype=torch.long, device=x.device)[:, None]
    # A centre is nearest to itself, also where another one is as near.
    return centre, distance[row, centre].scatter_(2, centre[..., None], -1.0).argmin(dim=1)
