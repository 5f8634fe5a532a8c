"""Reduce each frame of a video on its own: as if frames were pictures of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.keep import Keep, kept
from illava_lab.method.strategy import Strategy
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens


def count_by_frame(tokens: Tokens, keep: Keep) -> Tensor:
    """(B,) long, how many tokens of a video stay if each frame keeps a fraction of its own, or its part of a number."""
    frames, each = _split(tokens)
    left = max(1, min(each, keep // frames)) if isinstance(keep, int) else kept(keep, each, "a frame")
    return torch.full((tokens.batch,), frames * left, dtype=torch.long, device=tokens.hidden.device)


def map_by_frame(strategy: Strategy, tokens: Tokens, keep: int) -> TokenMap:
    """The strategy's map of each frame, as one map of the video.

    Raises:
        LabError: `keep` is not as many tokens of each frame.
    """
    frames, each = _split(tokens)
    left, more = divmod(keep, frames)
    if more or not left:
        raise LabError(f"frame by frame, keep must be a multiple of the {frames} frames, got {keep}")

    def split(x: Tensor) -> Tensor:
        return x.unflatten(1, (frames, each)).flatten(0, 1)  # type: ignore[no-untyped-call, no-any-return]

    own = Tokens(
        "llm",
        split(tokens.hidden),
        layer=tokens.layer,
        size=lambda: split(tokens.size),
        position=lambda: split(tokens.position),
        protected=(lambda: split(tokens.protected)) if tokens.has_protected else None,
        protected_count=min(tokens.protected_count, each),
        plan=tokens.plan,
        site=_EachFrame(tokens, frames),
    )
    found = strategy.map(own, left)
    frame = torch.arange(frames, dtype=torch.long, device=found.anchor.device)[:, None]

    def joined(x: Tensor | None, step: int = 0) -> Tensor | None:
        """(B, frames * n) of (B * frames, n), numbers of a frame counted through the video."""
        if x is None:
            return None
        out: Tensor = (x.view(tokens.batch, frames, -1) + (frame * step if step else 0)).flatten(1)
        return out

    anchor = joined(found.anchor, each)
    assert anchor is not None
    return TokenMap(
        anchor, tokens.count, joined(found.self_weight), joined(found.slot, left), joined(found.source, each),
        joined(found.weight), joined(found.score), tokens.row,
    )  # fmt: skip


def _split(tokens: Tokens) -> tuple[int, int]:
    """(frames, tokens that are left of each)."""
    assert tokens.frames is not None
    frames, rest = tokens.frames[0], tokens.count % tokens.frames[0]
    if rest:
        raise LabError(f"frame by frame needs equally many tokens of each frame; {tokens.count} are left of {frames}")
    return frames, tokens.count // frames


class _EachFrame:
    """Where statistics of single frames come from: those of the video."""

    def __init__(self, tokens: Tokens, frames: int) -> None:
        self._tokens, self._frames = tokens, frames

    def statistic(self, name: str) -> Tensor:
        x = self._tokens._statistic(name)
        frames = self._frames
        if name == "text_rows":
            rows: Tensor = x.unflatten(2, (frames, -1)).transpose(1, 2).flatten(0, 1)  # type: ignore[no-untyped-call]
            return rows
        if name in ("text_attention", "next_text_attention") or not name.startswith(("text_", "joint_text")):
            own: Tensor = x.unflatten(1, (frames, -1)).flatten(0, 1)  # type: ignore[no-untyped-call]
            return own
        return x.repeat_interleave(frames, dim=0)  # of the text, which all frames have in common
