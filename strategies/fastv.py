"""FastV: in the LLM, keep the visual tokens that the last text token attends to most."""

from torch import Tensor

from illava_lab.method import Paper, Scorer, Stage, Tokens, register


@register
class FastV(Scorer):
    """Before layer K, rank visual tokens by ``s_j = 1/H sum_h A_{K-1}[h, last, j]``; keep the highest, drop the rest.

    The reference hard-codes where the image starts (36 for a model where it starts at 35) and re-runs layer K-1 for
    its attention; here the image is found in the prompt and one row is computed from the queries and keys of the one
    run. With a cache, the reference prunes anew at every generated token; here once, at prefill, as its paper says.
    """

    name = "fastv"
    paper = Paper("An Image is Worth 1/2 Tokens After Layer 2", "2403.06764", 2024)
    stages = ("llm",)

    def score(self, tokens: Tokens) -> Tensor:
        return tokens.text_attention

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [min(2, depth - 1)]
