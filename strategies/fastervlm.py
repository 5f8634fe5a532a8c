"""FasterVLM: at the end of the encoder, keep the patches that CLS attends to most."""

from torch import Tensor

from illava_lab.method import Paper, Scorer, Stage, Tokens, register


@register
class FasterVLM(Scorer):
    """Rank patches by ``s_j = 1/H sum_h A[h, CLS, j]`` in the last encoder layer used; keep the highest, drop the rest.

    The reference prunes at the input of the projector, the output of that layer. Here the layer's own MLP runs on the
    survivors only, which changes nothing for them. The reference counts ``round(N (1 - rate))`` patches, without CLS.

    Needs a tower with a CLS token (CLIP).
    """

    name = "fastervlm"
    paper = Paper(
        "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster",
        "2412.01818",
        2024,
    )
    stages = ("encoder",)

    def score(self, tokens: Tokens) -> Tensor:
        return tokens.cls_attention

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1]
