"""VScan: merge, at the end of the encoder, into patches that CLS attends to in all or in a window; prune in the LLM."""

import torch
from torch import Tensor

from illava_lab.method import (
    LabError,
    Paper,
    Stage,
    Strategy,
    TokenMap,
    Tokens,
    chosen_first,
    highest,
    one_of,
    ranking,
    register,
    unit,
    within_quota,
)  # fmt: skip

SHALLOW = 5 / 23  # of the depth: layer 5 of the 23 that LLaVA-1.5 uses


@register
class VScan(Strategy):
    """Two stages. In the encoder T patches are kept, half of them *local*, and all others merged into them.

    1. Local: the grid is cut into W windows; of each, the ``int(T / 2) // W`` patches to which CLS attends most at a
       shallow layer (5 of LLaVA-1.5's 23).
    2. Global: of the rest, those to which CLS attends most at the last layer.
    3. Every other patch joins the kept one of highest cosine; each becomes the plain mean of itself and what joined it.

    In the LLM, half way, tokens are pruned by the attention that the last text token pays in the layer to come.

    Args:
        window: patches along the side of a window; 6 is the code for LLaVA (16 windows), 4 that for Qwen2.5-VL (in
            cells). What is left over at the right and below belongs to the last windows.
        score: "cls", or "received" for towers without CLS: attention received, mean over heads and queries, as the
            code has it for Qwen2.5-VL (there the shallow layer is the first that attends over the whole image).

    Where windows cannot give their share, the code keeps fewer than T; here more global ones (ours). It compares and
    merges projected features; here that layer's states before its MLP, which merged patches then pass.
    """

    name = "vscan"
    paper = Paper(
        "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", "2505.22654", 2025
    )
    memory = "quadratic"

    window: int = 6
    score: str = "cls"

    def __post_init__(self) -> None:
        if isinstance(self.window, bool) or not isinstance(self.window, int) or self.window < 1:
            raise LabError(f"window must be a whole number of at least 1, got {self.window!r}")
        one_of("score", self.score, ("cls", "received"))

    def looks(self, depth: int) -> list[int]:
        return [round(depth * SHALLOW)]

    def note(self, tokens: Tokens, noted: Tensor | None) -> Tensor:
        return tokens.cls_attention if self.score == "cls" else tokens.attention_received

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if tokens.stage == "llm":
            score = tokens.next_text_attention
            return TokenMap.keep(highest(score, keep, tokens), tokens.count, score)
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        score, (window, windows) = self.note(tokens, None), self._windows(tokens)
        quota = window.new_full((tokens.batch, windows), tokens.room(keep) // 2 // windows)
        local = within_quota(ranking(tokens.noted, tokens), window, quota) | tokens.protected
        order = chosen_first(ranking(score, tokens), local)
        anchor, source = (part.sort(dim=1).values for part in order.split([keep, tokens.count - keep], dim=1))
        if tokens.room(keep) == 0:
            return TokenMap.keep(anchor, tokens.count, score)
        x = unit(tokens.hidden)
        alike = torch.bmm(x[tokens.row, source], x[tokens.row, anchor].transpose(1, 2)).nan_to_num_(nan=-torch.inf)
        alike.masked_fill_(tokens.protected.gather(1, anchor)[:, None], -torch.inf)
        one = torch.ones_like(score, dtype=x.dtype)  # what a patch stands for does not count
        return TokenMap.merge_into(anchor, alike.argmax(dim=2), source, one, score, tokens.row)

    def _windows(self, tokens: Tokens) -> tuple[Tensor, int]:
        """(B, N) long the window of each patch, W for a token that is no patch; and W."""
        if tokens.grid is None:
            raise LabError("vscan needs the grid of the patches, which this place has not")
        height, width = tokens.grid
        down, across = max(1, height // self.window), max(1, width // self.window)
        row = (tokens.position // width // self.window).clamp(0, down - 1)
        column = (tokens.position.clamp_min(0) % width // self.window).clamp_max(across - 1)
        window = (row * across + column).masked_fill(tokens.protected | tokens.noted.isnan(), down * across)
        return window, down * across

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [depth - 1 if stage == "encoder" else min(max(1, depth // 2), depth - 1)]
