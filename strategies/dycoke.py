"""DyCoke: of a video keep every fourth frame whole, and of the others what differs from a frame before."""

import torch
from torch import Tensor

from illava_lab.method import Paper, Scorer, Stage, Tokens, cosine_to, frame_of, register, same_place_in


@register
class DyCoke(Scorer):
    """Frames in groups of four: of those that are thinned, keep the tokens least like those at the same place before.

    1. Every odd frame is thinned by the frame before it.
    2. Frame 2 of each group is thinned by frame 0 of its group; not in the last group, where it stays whole.
    3. Of a thinned frame the tokens of lowest cosine stay, of each frame equally many (one more in the first ones).

    A budget below that of the whole frames thins these alike, each by the whole frame four before, the first in raster
    order: ours, as is that frames may be as few as one, and that an odd last frame stays. The reference keeps
    ``int((1 - 0.7) n)`` of the n tokens of a thinned frame, puts them in the order of their cosine (here raster), and
    fails for four frames or fewer. Its second stage drops entries of the cache while decoding, and is not here.

    This is the code of LightCompress. What the projector made is thinned, in front of the LLM.
    """

    name = "dycoke"
    paper = Paper("DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", "2411.15024", 2024)
    stages = ("llm",)
    media = ("video",)
    first_llm_layer = 0

    def score(self, tokens: Tokens) -> Tensor:
        frame, (count, width) = frame_of(tokens), tokens.frames or (1, 1)
        other = torch.where(frame % 2 == 1, frame - 1, torch.where(frame % 4 == 2, frame - 2, frame - 4))
        alike = cosine_to(same_place_in(tokens, other), tokens, without=-2.0)
        thinned = (frame % 2 == 1) | ((frame % 4 == 2) & (frame - 2 < count - 4))
        rank = _rank_in_frame(alike, frame).to(alike.dtype)
        return torch.where(thinned, -rank, 2 * width - rank).masked_fill(alike.isnan(), torch.nan)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [0]


def _rank_in_frame(alike: Tensor, frame: Tensor) -> Tensor:
    """(B, N) long, 0 for the token of each frame that is least alike; NaN last, ties to the smaller index."""
    order = alike.nan_to_num(nan=torch.inf).argsort(dim=1, stable=True)
    order = order.gather(1, frame.gather(1, order).argsort(dim=1, stable=True))
    own = frame.gather(1, order)
    rank = torch.arange(own.shape[1], dtype=torch.long, device=own.device) - torch.searchsorted(own, own)
    return rank.gather(1, order.argsort(dim=1))
