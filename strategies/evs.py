"""EVS: of a video keep what changes, the tokens that are least like those of the frame before."""

import torch
from torch import Tensor

from illava_lab.method import Paper, Scorer, Stage, Tokens, cosine_to, register, same_place_before

FIRST = 255.0  # above every distance


@register
class EVS(Scorer):
    """Keep the first frame, then the tokens with the largest ``1 - cos(x_fj, x_(f-1)j)``, those that changed.

    Each token is compared with the one at the same place j of frame f - 1 (of the nearest earlier frame that has it
    left, where something was reduced before: ours). The largest are kept over the whole video, ties to the earlier
    token: a frame may vanish, and after a cut a frame stays whole. Neither attention nor text is looked at.

    The reference keeps ``max(n, int(F n (1 - q)))`` of F frames with n tokens each; here the schedule says how many,
    and if these are fewer than a frame has, they are the first ones of the first frame. It prunes what the projector
    made, in front of the LLM. Where layers of the LLM add visual features (Qwen3-VL), it is behind these.
    """

    name = "evs"
    paper = Paper(
        "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference", "2510.14624", 2025
    )
    stages = ("llm",)
    media = ("video",)
    first_llm_layer = 0

    def score(self, tokens: Tokens) -> Tensor:
        alike = cosine_to(same_place_before(tokens), tokens, without=-torch.inf)
        return (1 - alike).clamp_max(FIRST)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [0]
