"""iLLaVA: merge the least attended tokens into one survivor, in the encoder and in the LLM."""

import torch

from illava_lab.method import FewSums, Paper, Strategy, Sums, TokenMap, Tokens, one_of, ranking, register, wide


@register
class ILLaVA(Strategy):
    """Rank tokens by the attention they receive; the R least attended are recycled into the next one.

    Of the R+1 tokens with the lowest score, the highest-scored is the target t; the other R are merged into it, with
    a ramp of weights ``w_a = R+1-a`` for the a-th lowest, a = 0..R: ``x_t = sum_a w_a x_{m_a} / ((R+1)(R+2)/2)``.

    Args:
        ramp: "reference" is the published code: the *least* attended token weighs most and the target least.
            "reversed" turns the ramp around, as the idea of recycling would suggest; "uniform" is the plain mean;
            "size" weighs by the patches each token stands for. The last three are ours.
        score: "attention" is the paper, and the code for LLaVA-OneVision: in the encoder attention received in this
            layer, mean over heads and queries; in the LLM attention that the last text token pays in layer K-1. "lse"
            is what the code for Qwen2-VL computes instead: ``log sum_j exp(q_i k_j / sqrt d)`` of each token's *own*
            query, mean over heads. In the LLM that grows with the tokens before, and so keeps the image's lower part.

    The reference also rounds merged vectors to float16; here they are accumulated in float32 and cast once.
    """

    name = "illava"
    paper = Paper(
        "iLLaVA: An Image is Worth Fewer Than 1/3 Input Tokens in Large Multimodal Models", "2412.06263", 2024
    )

    ramp: str = "reference"
    score: str = "attention"

    def __post_init__(self) -> None:
        one_of("ramp", self.ramp, ("reference", "reversed", "uniform", "size"))
        one_of("score", self.score, ("attention", "lse"))

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if self.score == "lse":
            score = tokens.lse
        else:
            score = tokens.attention_received if tokens.stage == "encoder" else tokens.text_attention
        order = ranking(score, tokens)
        anchor, rank = order[:, :keep].sort(dim=1)
        if keep == tokens.count or tokens.room(keep) == 0:  # nothing to merge, or only protected ones to merge into
            return TokenMap.keep(anchor, tokens.count, score=score)
        target, merged = rank.argmax(dim=1, keepdim=True), order[:, keep - 1 :]
        sums = Sums(target, merged, self._weights(tokens, merged))
        return FewSums(anchor, tokens.count, score=score, row=tokens.row, sums=sums)

    def _weights(self, tokens: Tokens, merged: torch.Tensor) -> torch.Tensor:
        """(R+1,) or (B, R+1) weights of the target and of what it absorbs, in falling order of score; sum is 1."""
        dtype, count = wide(tokens.hidden.dtype), merged.shape[1]
        if self.ramp == "size":
            size = tokens.size.gather(1, merged).to(dtype)
            return size / size.sum(dim=1, keepdim=True)
        first, last = {"reference": (1, count), "reversed": (count, 1), "uniform": (1, 1)}[self.ramp]
        total = (first + last) * count / 2
        return torch.linspace(first / total, last / total, count, dtype=dtype, device=merged.device)
