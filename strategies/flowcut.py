"""FlowCut: inside the encoder, at every other layer, drop the patches through which little information flows."""

from math import log, sqrt

import torch
from torch import Tensor
from torch.linalg import vector_norm

from illava_lab.method import (
    Keep,
    LabError,
    Paper,
    Stage,
    Strategy,
    TokenMap,
    Tokens,
    highest,
    kept,
    one_of,
    register,
)  # fmt: skip


@register
class FlowCut(Strategy):
    """Keep the highest F: ``F = f`` at layer 0, then ``F = (F + f) / 2`` at every layer, with

    ``f_j = (c_j / sum c + s_j / sum s) |v_j|_1``, where c is the attention that CLS pays to the patches, s the softmax
    of the products of their values with that of CLS, and v_j the value of j, each the mean over heads.

    Of N patches that are left, T wanted and r layers to go, ``round((N - T) / sqrt(r) (1 - h^2))`` are removed, at
    every second layer, and at the last of these all above T; h is the entropy of c over log N.

    Args:
        decides: "image" takes h from each picture; the code takes the picture of a batch that loses most. "schedule" is
            ours: all pictures lose equally many at a layer, so that nothing waits for them. T is the same either way.
        entropy: the h by which a budget is split over the layers in advance.
        score: "cls", or "received" for towers without CLS: ``f_j = a_j |v_j|_1`` with the attention received a. The
            code for Qwen2-VL has there the attention that the mean of all queries pays.

    For LLaVA-NeXT and Qwen2-VL the code cuts once more in the LLM, which is not done here. It acts at the end of a
    layer, here before its MLP, which changes nothing for those that stay.
    """

    name = "flowcut"
    paper = Paper(
        "FlowCut: Rethinking Redundancy via Information Flow for Efficient Vision-Language Models", "2505.19536", 2025
    )
    stages = ("encoder",)
    kind = "prune"

    decides: str = "schedule"
    entropy: float = 0.9
    score: str = "cls"

    def __post_init__(self) -> None:
        if type(self.entropy) not in (int, float) or not 0 <= self.entropy <= 1:
            raise LabError(f"entropy must be a number from 0 to 1, got {self.entropy!r}")
        one_of("decides", self.decides, ("schedule", "image"))
        one_of("score", self.score, ("cls", "received"))

    @property
    def own_count(self) -> bool:  # type: ignore[override]  # a setting decides
        return self.decides == "image"

    def count(self, tokens: Tokens, keep: Keep) -> Tensor:
        attention = tokens.cls_attention if self.score == "cls" else tokens.attention_received
        share, now = _share(tokens, attention).double().nan_to_num(), tokens.count - tokens.protected_count
        wanted = now if tokens.grid is None or not tokens.plan else tokens.grid[0] * tokens.grid[1]
        for each in tokens.plan.values() or [keep]:
            wanted = kept(each, wanted, self.name)
        rest, wanted = max(tokens.plan, default=tokens.layer) - tokens.layer, min(wanted, now)
        entropy = torch.special.entr(share).sum(dim=1) / log(max(2, now))
        gone = ((now - wanted) / sqrt(max(1, rest)) * (1 - entropy.square())).round_().clamp_min_(0).long()
        left = now - gone if rest else torch.full_like(gone, wanted)
        return left.clamp_min_(wanted) + tokens.protected_count

    def note(self, tokens: Tokens, noted: Tensor | None) -> Tensor:
        share = tokens.attention_received if self.score == "received" else _share(tokens, tokens.cls_attention)
        if self.score == "cls":
            share = share + _share(tokens, tokens.cls_value_attention)
        flow = share * vector_norm(tokens.values, ord=1, dim=2)
        return flow if noted is None else (noted + flow) / 2

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        return TokenMap.keep(highest(tokens.noted, keep, tokens), tokens.count, tokens.noted)

    def looks(self, depth: int) -> list[int]:
        return list(range(depth))

    def layers(self, stage: Stage, depth: int) -> list[int]:
        last = max(0, depth - 2)
        return list(range(last % 2, last + 1, 2))

    def counts(self, stage: Stage, steps: int, before: int, after: int) -> list[int]:
        out = [before]
        for rest in range(2 * steps - 2, 0, -2):
            out.append(max(after, out[-1] - round((out[-1] - after) / sqrt(rest) * (1 - self.entropy**2))))
        return [*out[1:], after]


def _share(tokens: Tokens, attention: Tensor) -> Tensor:
    attention = attention.masked_fill(tokens.protected, 0.0)
    return attention / attention.nan_to_num().sum(dim=1, keepdim=True)
