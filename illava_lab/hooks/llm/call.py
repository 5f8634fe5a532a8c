"""What one call of the language model knows: what lies in the prompt, and what is left of it from layer to layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from illava_lab.models.layout import Medium
from illava_lab.trace.survivors import EncodedImage


@dataclass(eq=False)
class Segment:
    """What is left of the prompt from some layer on.

    Attributes:
        layer: first LLM layer that runs on it.
        entry: (B, L) slots in the sequence that entered layer 0.
        prompt: (B, L) slots in the processor's prompt.
        valid: (B, L) bool, False at padding.
        full: known on the host: nothing is padded.
        shift: (B,) how far position ids moved ("packed"), or None.
    """

    layer: int
    entry: Tensor
    prompt: Tensor
    valid: Tensor
    full: bool
    shift: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """What lies in every slot of the processor's prompts, on the host: (B, L) bool each."""

    valid: np.ndarray
    hole: np.ndarray
    media: dict[Medium, np.ndarray]

    @property
    def visual(self) -> np.ndarray:
        return np.any(list(self.media.values()), axis=0)

    @property
    def text(self) -> np.ndarray:
        return self.valid & ~self.visual


@dataclass(frozen=True, eq=False)
class PlacedImage:
    """One image or video of the prompts, as the host knows it."""

    row: int  # the prompt it belongs to
    visual: EncodedImage
    at: np.ndarray  # (S,) slots of its placeholders in the processor's prompt
    text_after: int  # text tokens of the prompt behind it


@dataclass(frozen=True, eq=False)
class Entry:
    """What entered layer 0: the sequence (B, L, C), and where its text (B, L) and its visual tokens (V,) are."""

    hidden: Tensor
    text: Tensor
    at: Tensor
    counts: list[int]


@dataclass(eq=False)
class Prefill:
    """One prefill. V counts the visual tokens of the batch, image after image, in the order of their placeholders."""

    segments: list[Segment]
    positions: Tensor  # (B or 1, L) position ids at the entry, as the processor's prompt has them
    images: list[PlacedImage]
    counts: list[int]  # visual tokens that each image has left
    text: Tensor  # (B, L) bool, which tokens of the current sequence are text
    taken: Tensor  # (B, L) bool, which of its slots are no padding
    lengths: np.ndarray  # (B,) how many these are
    some_masked: bool  # the mask hides some of these
    at: Tensor  # (V,) their slots in the current sequence
    size: Tensor  # (V,) patches that each stands for
    place: Tensor  # (V,) whose place in the image each holds, markers not counted
    entry: Entry
    changed: bool = False  # any slot has left its place in the prompt (lengths alone do not tell)
    attention: tuple[Tensor, Tensor, Tensor | None, float] | None = None
    kwargs: dict[str, Any] | None = None  # what layers get from the last reduction on


@dataclass(eq=False)
class Decode:
    segments: list[Segment]
    positions: Tensor  # (B, new) position ids, as without reduction
    masks: list[Tensor | None]
    past: int  # tokens generated so far
    kwargs: dict[int, dict[str, Any]] = field(default_factory=dict)
