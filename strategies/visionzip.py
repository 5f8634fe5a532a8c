"""VisionZip: after the encoder, keep what CLS attends to most and merge the rest into a few contextual tokens."""

import torch
from torch.nn.functional import normalize

from illava_lab.method import LabError, Paper, Stage, Strategy, TokenMap, Tokens, one_of, ranking, register


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
        parts = ranking(score, tokens).tensor_split([keep - contextual], dim=1)
        dominant, rest = (part.sort(dim=1).values for part in parts)
        if contextual == 0:
            return TokenMap.keep(dominant, tokens.count, score)

        step, place = rest.shape[1] // contextual, torch.arange(rest.shape[1], device=rest.device)
        is_other = (place % step > 0) | (place >= contextual * step)
        target, other = rest[:, is_other.to(torch.int8).argsort(stable=True)].tensor_split([contextual], dim=1)
        keys = normalize(tokens.keys.float(), dim=-1)
        similarity = keys.take_along_dim(other[..., None], 1) @ keys.take_along_dim(target[..., None], 1).mT
        anchor = torch.cat([dominant, target], dim=1)
        slot = dominant.shape[1] + similarity.nan_to_num(nan=-torch.inf).argmax(dim=2)  # NaN would be nearest to all
        if self.merge == "mean":
            return TokenMap.merge_into(anchor, slot, other, torch.ones_like(tokens.size), score)
        one = torch.ones_like(other, dtype=torch.float32)
        members = one.new_zeros(anchor.shape).scatter_add(1, slot, one)
        return TokenMap(anchor, tokens.count, None, slot, other, 1 / members.gather(1, slot), score)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1]
