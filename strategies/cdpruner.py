"""CDPruner: before the LLM, keep the visual tokens that are relevant to the question and differ from each other."""

import torch
from torch import Tensor

from illava_lab.method import LabError, Paper, Stage, Strategy, TokenMap, Tokens, one_of, picked, register, unit

NOISE = 1e-6  # a gain below it is rounding


@register
class CDPruner(Strategy):
    """Greedy search for the subset S of largest ``det L_S`` of a determinantal point process, with the kernel

    ``L_ij = q_i cos(x_i, x_j) q_j``, where q is the relevance r of each token, brought to the range 0 to 1.

    Args:
        relevance: "clip" is the paper: ``r_i = -mean_m cos(e_i, t_m)`` of patches e and question t in the space of
            CLIP; the sign is the code's. LLaVA has no text tower, so it must be given (`joint_hidden`, `joint_text`).
            "embeddings" is what the authors do where there is none: ``r_i = mean_m cos(x_i, w_m)`` with the embeddings
            w of the text after the image. "none" is ``q = 1``, diversity alone.

    The code takes least and largest r of a whole batch, so that pictures depend on each other; here of each picture. It
    prunes every crop of LLaVA-NeXT by itself, here a picture at once. Once all gains are rounding, those of largest q
    follow (ours).
    """

    name = "cdpruner"
    paper = Paper(
        "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
        "2506.10967",
        2025,
    )
    stages = ("llm",)
    first_llm_layer = 0
    kind = "prune"
    memory = "quadratic"

    relevance: str = "embeddings"

    def __post_init__(self) -> None:
        one_of("relevance", self.relevance, ("clip", "embeddings", "none"))

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        x, q = unit(tokens.hidden), self._quality(tokens)
        last = (x.isnan().any(dim=2) | q.isnan()).float().add_(tokens.protected, alpha=2).neg_()
        q = q.masked_fill(last < 0, 0.0)
        x = x.nan_to_num(0.0) * q[..., None]
        rank = q / q.amax(dim=1, keepdim=True).clamp_min(NOISE) - 2 + 4 * last  # for what has no gain
        gain, row, picks = x.square().sum(dim=2), tokens.row[:, 0], []
        found = x.new_zeros(tokens.batch, keep, tokens.count)
        for i in range(keep):
            gains = gain > NOISE
            picks.append(torch.where(gains, gain, rank).argmax(dim=1))
            pick = picks[-1][:, None]
            column = torch.bmm(x, x[row, picks[-1]][..., None])[..., 0]
            column -= torch.bmm(found[row, :i, picks[-1]][:, None], found[:, :i])[:, 0]
            column = column * gains.gather(1, pick) / gain.gather(1, pick).clamp_min(NOISE).sqrt()
            found[:, i] = column
            gain = (gain - column.square()).scatter(1, pick, -torch.inf)
            rank = rank.scatter(1, pick, -torch.inf)
        return picked(picks, keep, tokens)

    def _quality(self, tokens: Tokens) -> Tensor:
        """(B, N) relevance in the range 0 to 1, from the least relevant of a picture to the most."""
        if self.relevance == "none":
            return torch.ones_like(tokens.hidden[..., 0], dtype=unit(tokens.hidden[:, :1]).dtype)
        if self.relevance == "clip":
            try:
                relevance = -_closeness(tokens.joint_hidden, tokens.joint_text)
            except LabError as error:
                raise LabError(f"{error}; relevance='embeddings' is what CDPruner does where there is none") from None
        elif tokens.text_embeddings.shape[1] == 0:
            raise LabError("cdpruner needs text after the image, this prompt has none; allowed: relevance='none'")
        else:
            relevance = _closeness(tokens.hidden, tokens.text_embeddings)
        seen = relevance.masked_fill(tokens.protected | relevance.isnan(), torch.inf)
        least = seen.amin(dim=1, keepdim=True)
        span = seen.masked_fill(seen.isinf(), -torch.inf).amax(dim=1, keepdim=True) - least
        return torch.where(span > 0, (relevance - least + 1e-6) / span, 1.0)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [0]


def _closeness(x: Tensor, text: Tensor) -> Tensor:
    return torch.bmm(unit(x), unit(text).transpose(1, 2)).mean(dim=2)
