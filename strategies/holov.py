"""HoloV: at the end of the encoder, share the budget over stretches of the image, and keep the most attended there."""

import numpy as np
import torch

from illava_lab.method import (
    LabError,
    Paper,
    Stage,
    Strategy,
    TokenMap,
    Tokens,
    add_at,
    chosen_first,
    hand_out,
    host_made,
    one_of,
    ranking,
    register,
    within_quota,
)  # fmt: skip


@register
class HoloV(Strategy):
    """Patches in raster order are cut into P stretches of equal length; one of mean attention A gets ``floor(T w)`` of

    the T tokens to keep, with ``w = A / sum A``, and of what is left one each goes to those of largest w. A stretch
    keeps so many of its patches, those with the highest attention of CLS.

    Args:
        chunks: P; 0 for ``max(1, int(16 N / (9 T)))``, which is the code's rule for Qwen2.5-VL, and gives the 16 that
            its LLaVA has for 64 of 576.
        score: "cls", or "received" for towers without CLS: attention received, mean over heads and queries, as the
            code has it for Qwen2.5-VL.

    The code adds to A the variance of the similarities in a stretch, but scales it to the mean of A, so that the sum is
    1.09 A whatever it was (but for an epsilon): it is left out here. Where a stretch has fewer patches than its share,
    the code fills up with vectors of zeros; here what is over goes to the others by falling w. It prunes behind the
    projector, which changes nothing for those that stay; it takes all crops for one list, here each is one. Its LLM
    gets a stretch's patches by attention, here all by their places.
    """

    name = "holov"
    paper = Paper(
        "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
        "2510.02912",
        2025,
    )
    stages = ("encoder",)
    kind = "prune"

    chunks: int = 0
    score: str = "cls"

    def __post_init__(self) -> None:
        if isinstance(self.chunks, bool) or not isinstance(self.chunks, int) or self.chunks < 0:
            raise LabError(f"chunks must be a whole number of at least 0, got {self.chunks!r}")
        one_of("score", self.score, ("cls", "received"))

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        score = tokens.cls_attention if self.score == "cls" else tokens.attention_received
        room, patches = tokens.room(keep), tokens.count - tokens.protected_count
        chunks = min(patches, self.chunks or max(1, 16 * patches // (9 * max(1, room))))
        place = (~tokens.protected).cumsum(dim=1) - 1
        chunk = _chunk_of(tokens.hidden, patches, chunks)[0][place.clamp(0, patches - 1)]
        chunk = chunk.masked_fill(tokens.protected | score.isnan(), chunks)

        none = torch.zeros((tokens.batch, chunks + 1), dtype=torch.float64, device=score.device)
        total = add_at(none, tokens.row, chunk, score.double().nan_to_num())[:, :-1]
        size = add_at(none.long(), tokens.row, chunk, torch.ones_like(chunk))[:, :-1]
        share = total / size.clamp_min(1)
        share = share / (share.sum(dim=1, keepdim=True) + 1e-9)  # the code's epsilon, on its scale
        largest = share.argsort(dim=1, descending=True, stable=True)
        quota = (share * room).floor().long()
        more = hand_out(room - quota.sum(dim=1, keepdim=True), torch.ones_like(quota), largest)
        quota = torch.minimum(quota + more, size)
        quota = quota + hand_out(room - quota.sum(dim=1, keepdim=True), size - quota, largest)
        order = ranking(score, tokens)
        chosen = within_quota(order, chunk, quota) | tokens.protected
        return TokenMap.keep(chosen_first(order, chosen)[:, :keep].sort(dim=1).values, tokens.count, score)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1]


@host_made
def _chunk_of(patches: int, chunks: int) -> tuple[np.ndarray]:
    """(patches,) the stretch of each patch: of equal lengths, the first ones longer by one."""
    return (
        np.concatenate([np.full(len(part), i) for i, part in enumerate(np.array_split(np.arange(patches), chunks))]),
    )
