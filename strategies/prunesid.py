"""PruneSID: at the end of the encoder, sort patches into groups, and keep of each what is important and differs."""

from math import ceil

import torch
from torch import Tensor

from illava_lab.method import (
    Paper,
    Stage,
    Strategy,
    TokenMap,
    Tokens,
    add_at,
    chosen_first,
    hand_out,
    one_of,
    ranking,
    register,
    unit,
    within_quota,
)  # fmt: skip


@register
class PruneSID(Strategy):
    """T tokens, CLS among them, are kept in three steps; a is the attention that CLS pays to each patch.

    1. Groups: with ``Z = sigmoid(x)``, less each patch's mean over channels, patch i is in group ``argmax_k |V_ik|``
       of the first ``K = int(T / 4)`` singular vectors V of Z.
    2. In each group the patch of largest a is taken, those with ``cos(x, x') > T / 32 mean cos`` to it are suppressed,
       and so on. A group is ranked: taken ones, then suppressed ones, each by falling a.
    3. A group of which n patches are taken gets 1 and a share of the rest in proportion to n, but at most
       ``min(5 ceil(T / 64), n)`` (or more, where all of that is less than T), and keeps so many of its first.

    Args:
        score: "cls", or "received" for towers without CLS: attention received, mean over heads and queries (ours).
            The authors rank by ``|V_ik|`` in Qwen2-VL.

    The reference takes V from a randomised decomposition, unseeded, so that two runs differ; here it is exact, for
    which a GPU's host waits. It hands CLS to the LLM as one more token, and patches group by group; here LLaVA drops
    CLS as always, and the LLM has patches by their places. It compares the output of the last layer used, here that
    layer's states before its MLP. Without CLS, T is one more than the patches that are kept.
    """

    name = "prunesid"
    paper = Paper(
        "Prune Redundancy, Preserve Essence: Vision Token Compression in VLMs via Synergistic Importance-Diversity",
        "2603.09480",
        2026,
    )
    stages = ("encoder",)
    kind = "prune"
    memory = "quadratic"

    score: str = "cls"

    def __post_init__(self) -> None:
        one_of("score", self.score, ("cls", "received"))

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        score = tokens.cls_attention if self.score == "cls" else tokens.attention_received
        order, total = ranking(score, tokens), tokens.room(keep) + 1
        if total == 1:
            return TokenMap.keep(order[:, :keep].sort(dim=1).values, tokens.count, score)
        apart = tokens.hidden.isnan().any(dim=2) | score.isnan() | tokens.protected
        group, groups = _groups(tokens.hidden.masked_fill(apart[..., None], 0.0), max(1, total // 4))
        group = group.masked_fill(apart, groups)
        taken = _taken(unit(tokens.hidden).masked_fill_(apart[..., None], 0.0), ~apart, group, score, order, total / 32)
        quota = _quotas(_count(group, groups), _count(group.masked_fill(~taken, groups), groups), total)
        chosen = within_quota(chosen_first(order, taken), group, quota) | tokens.protected
        return TokenMap.keep(chosen_first(order, chosen)[:, :keep].sort(dim=1).values, tokens.count, score)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1]


def _groups(x: Tensor, most: int) -> tuple[Tensor, int]:
    """(B, N) the group of each patch, and how many there are."""
    z = x.double().sigmoid()
    z = z - z.mean(dim=2, keepdim=True)
    vectors = torch.linalg.eigh(torch.bmm(z, z.transpose(1, 2))).eigenvectors  # the largest comes last
    groups = min(most, x.shape[1], max(1, x.shape[2] - 1))  # one dimension goes with the means
    return vectors[..., -groups:].flip(2).abs().argmax(dim=2), groups


def _taken(x: Tensor, patch: Tensor, group: Tensor, score: Tensor, order: Tensor, share: float) -> Tensor:
    """(B, N) bool: patches with which no more important one of their group has too much in common."""
    alike, patches = torch.bmm(x, x.transpose(1, 2)), patch.sum(dim=1)
    pairs = (patches * (patches - 1)).clamp_min(1)
    mean = (alike.sum(dim=(1, 2)) - alike.diagonal(dim1=1, dim2=2).sum(dim=1)) / pairs
    conflict = (alike > share * mean[:, None, None]) & (group[:, None] == group[..., None])
    row = torch.arange(len(x), dtype=torch.long, device=x.device)[:, None, None]
    conflict = conflict[row, order[..., None], order[:, None]].triu(1)  # of each with less important ones
    gone = ~(patch & (score > 0)).gather(1, order)
    for i, others in enumerate(conflict.unbind(dim=1)):
        gone |= others > gone.narrow(1, i, 1)  # what is gone suppresses nobody
    return ~gone.gather(1, order.argsort(dim=1))


def _count(group: Tensor, groups: int) -> Tensor:
    """(B, groups) long: how many patches each has."""
    none = torch.zeros((len(group), groups + 1), dtype=torch.long, device=group.device)
    row = torch.arange(len(group), dtype=torch.long, device=group.device)[:, None]
    return add_at(none, row, group, torch.ones_like(group))[:, :-1]


def _quotas(size: Tensor, taken: Tensor, total: int) -> Tensor:
    """(B, K) long: how many patches each group keeps, total - 1 in all."""
    least = size.clamp_max(1)
    most = torch.minimum(size, taken.clamp_max(5 * ceil(total / 64)))
    more = torch.arange(total, dtype=torch.long, device=size.device)
    reach = torch.minimum(size[..., None], most[..., None] + more).sum(dim=1)
    most = torch.minimum(size, most + (reach < total).sum(dim=1, keepdim=True))
    rest = total - 1 - least.sum(dim=1, keepdim=True)
    part = (rest * taken.cumsum(dim=1)).double() / taken.sum(dim=1, keepdim=True).clamp_min(1)
    part = part.round_().long()
    quota = torch.minimum(least + part.diff(dim=1, prepend=torch.zeros_like(part[:, :1])), most)
    left = total - 1 - quota.sum(dim=1, keepdim=True)
    return quota + hand_out(left, most - quota, taken.argsort(dim=1, descending=True, stable=True))
