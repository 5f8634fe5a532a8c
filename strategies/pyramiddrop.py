"""PyramidDrop: in the LLM, drop visual tokens in several steps, as FastV does in one."""

from torch import Tensor

from illava_lab.method import Paper, Scorer, Stage, Tokens, register


@register
class PyramidDrop(Scorer):
    """At a quarter, half and three quarters of the depth, keep the highest of ``s_j = 1/H sum_h A[h, last, j]``.

    The paper halves the tokens three times (preset "pyramiddrop"); a budget is shared alike, by the same fraction at
    each step. The reference counts ``int(N_0 ratio)``, with ratios 0.5, 0.25, 0.125 of the tokens N_0 of the image.

    A is that of layer K itself: its norm and projections run ahead, on the states that enter it. The reference also
    re-numbers the positions after each step: ``attach(..., positions="packed")``.
    """

    name = "pyramiddrop"
    paper = Paper(
        "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction",
        "2410.17247",
        2024,
    )
    stages = ("llm",)

    def score(self, tokens: Tokens) -> Tensor:
        return tokens.next_text_attention

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return sorted({min(max(1, round(depth * part)), depth - 1) for part in (0.25, 0.5, 0.75)})

    def counts(self, stage: Stage, steps: int, before: int, after: int) -> list[int]:
        return [round(before * (after / before) ** ((i + 1) / steps)) for i in range(steps)]
