"""SCOPE: at the end of the encoder, keep salient patches that cover what the others do not."""

import torch

from illava_lab.method import LabError, Paper, Stage, Strategy, TokenMap, Tokens, one_of, picked, register, unit


@register
class Scope(Strategy):
    """Greedy coverage, weighted by saliency: with ``S_ij = cos(x_i, x_j)``, pick again and again the token of largest

    ``a_j^alpha sum_i max(0, S_ij - m_i)``, where ``m_i = max_{k picked} S_ik`` (0 at first) is how far i is covered.

    Args:
        alpha: the power of the attention a that CLS pays; 0 looks at coverage alone.
        combine: "multiply" as above; "add" is the code's other choice: the gain of coverage *plus* ``a_j^alpha``.
        score: "cls", or "received" for towers without CLS: attention received, mean over heads and queries (ours).

    The reference keeps T patches of all crops and images of a batch together; here of each. It compares the output of
    the last layer used, here that layer's states before its MLP; in half precision, here in float32. Its a is a sum
    over heads, here the mean, which makes a difference to "add" alone. CLS is kept and takes no part.
    """

    name = "scope"
    paper = Paper("SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs", "2510.24214", 2025)
    stages = ("encoder",)
    kind = "prune"
    memory = "quadratic"

    alpha: float = 1.0
    combine: str = "multiply"
    score: str = "cls"

    def __post_init__(self) -> None:
        if type(self.alpha) not in (int, float) or not 0 <= self.alpha < float("inf"):
            raise LabError(f"alpha must be a number of at least 0, got {self.alpha!r}")
        one_of("combine", self.combine, ("multiply", "add"))
        one_of("score", self.score, ("cls", "received"))

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        score = tokens.cls_attention if self.score == "cls" else tokens.attention_received
        broken = (tokens.hidden.isnan().any(dim=2) | score.isnan()).float()
        last = broken.add_(tokens.protected, alpha=2).neg_()  # these are picked when nothing else is left
        x = unit(tokens.hidden).masked_fill_((last < 0)[..., None], 0.0)
        alike, saliency = torch.bmm(x, x.transpose(1, 2)), score.to(x.dtype) ** self.alpha
        alike = torch.maximum(alike, alike.transpose(1, 2))  # exactly symmetric, so that what is alike ties
        alike.diagonal(dim1=1, dim2=2).fill_(1.0)
        covered, picks, row = torch.zeros_like(saliency), [], tokens.row[:, 0]
        for _ in range(keep):
            gain = (alike - covered[:, None]).relu_().sum(dim=2)
            gain = gain * saliency if self.combine == "multiply" else gain + saliency
            picks.append(torch.where(last < 0, last, gain).argmax(dim=1))
            last = last.scatter(1, picks[-1][:, None], -torch.inf)
            covered = torch.maximum(covered, alike[row, picks[-1]])
        return picked(picks, keep, tokens)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1]
