"""VisionZip: after the encoder, keep what CLS attends to most and merge the rest into a few contextual tokens."""

import torch
from torch import Tensor

from illava_lab.method import LabError, Paper, Stage, Strategy, TokenMap, Tokens, one_of, ranking, register, unit


@register
class VisionZip(Strategy):
    """Dominant tokens by attention, contextual tokens by the similarity of keys, at the last encoder layer used.

    1. Dominant: CLS and the patches j with the highest ``s_j = 1/H sum_h A[h, CLS, j]``, copied unchanged.
    2. Contextual: of the R tokens that remain, in order, every ``R // contextual``-th is a target. Each other one
       joins the target t with the highest cosine of head-mean keys: ``y_t = x_t + 1/n_t sum_j x_j`` over n_t joined.

    Slots are CLS, dominant, contextual, each in raster order; the lab then gives the LLM all by place in the image.

    Args:
        contextual: how many of the kept tokens are contextual: a fraction or a number. 5/32 is what all presets of
            the code have (54+10, 108+20, 162+30); 0 only prunes, 1.0 only merges.
        merge: "sum" is the code: the mean is *added*, so that the weights of a contextual token sum to 2; "mean" is
            ours: ``y_t = (x_t + sum_j x_j) / (1 + n_t)``.
        score: "cls", or "received" for towers without CLS: attention received, mean over heads and queries, as
            EffiVLM-Bench has it for SigLIP (one layer earlier than here).

    The code acts on the output of the layer and hands CLS to the LLM as one more token. Here the reduction comes
    before the MLP of that layer, so contextual tokens pass it merged, and LLaVA drops CLS as always (as LightCompress).
    """

    name = "visionzip"
    paper = Paper("VisionZip: Longer is Better but Not Necessary in Vision Language Models", "2412.04467", 2024)
    stages = ("encoder",)
    memory = "quadratic"

    contextual: float | int = 5 / 32
    merge: str = "sum"
    score: str = "cls"

    def __post_init__(self) -> None:
        kind = type(self.contextual)
        if not ((kind is int and self.contextual >= 0) or (kind is float and 0 <= self.contextual <= 1)):
            raise LabError(f"contextual must be a fraction from 0 to 1 or a count, got {self.contextual!r}")
        one_of("merge", self.merge, ("sum", "mean"))
        one_of("score", self.score, ("cls", "received"))

    @property
    def averages(self) -> bool:  # type: ignore[override]  # a setting decides
        return self.merge == "mean"

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        score = tokens.cls_attention if self.score == "cls" else tokens.attention_received
        contextual = self.contextual if isinstance(self.contextual, int) else round(keep * self.contextual)
        contextual = min(contextual, tokens.room(keep))
        dominant, rest = ranking(score, tokens).split([keep - contextual, tokens.count - keep + contextual], dim=1)
        dominant = dominant.sort(dim=1).values
        if contextual == 0:
            return TokenMap.keep(dominant, tokens.count, score)

        rest = rest.sort(dim=1).values
        every = slice(0, contextual * (rest.shape[1] // contextual), rest.shape[1] // contextual)
        slot, members = self._joined(unit(tokens.keys[tokens.row, rest]), every)
        anchor = torch.cat([dominant, rest[:, every]], dim=1)
        # A target joins itself. Its own weight says what it has of itself, so the edge has weight 0.
        own = None if self.merge == "sum" else torch.ones_like(anchor, dtype=members.dtype)
        if own is not None:
            own[:, keep - contextual :] = 1 / members
        weight = (members - 1 if self.merge == "sum" else members).reciprocal_().gather(1, slot)
        weight[:, every].zero_()
        return TokenMap(anchor, tokens.count, own, slot.add_(keep - contextual), rest, weight, score, tokens.row)

    @staticmethod
    def _joined(keys: Tensor, every: slice) -> tuple[Tensor, Tensor]:
        """(B, R) which target each token joins, targets themselves; (B, T) float, how many join each."""
        similarity = torch.bmm(keys, keys[:, every].transpose(1, 2)).nan_to_num_(nan=-torch.inf)  # else it is nearest
        slot, place = similarity.argmax(dim=2), torch.arange(similarity.shape[2], dtype=torch.long, device=keys.device)
        slot[:, every].copy_(place)
        return slot, (slot[..., None] == place).sum(dim=1, dtype=keys.dtype)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1]
