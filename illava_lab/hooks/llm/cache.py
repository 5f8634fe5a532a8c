"""What decoding needs travels on the cache: how the prompt was reduced for each of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache as memoize
from typing import Any

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.hooks.attachment import Attachment


@dataclass(frozen=True, eq=False)
class Segment:
    """What a stretch of layers has cached of the prompts.

    Attributes:
        layer: the first of them.
        length: L, tokens of the longest prompt.
        valid: (B, L) bool, False at padding; None where there is none.
        shift: (B,) how far position ids moved ("packed"), or None.
        bias: (B, L) float32, log of how many tokens each stands for (proportional attention), or None.
    """

    layer: int
    length: int
    valid: Tensor | None = None
    shift: Tensor | None = None
    bias: Tensor | None = None

    def prompts(self, change: Callable[[Tensor], Tensor]) -> Segment:
        """The same with other prompts in the batch."""
        valid, shift, bias = (None if x is None else change(x) for x in (self.valid, self.shift, self.bias))
        return replace(self, valid=valid, shift=shift, bias=bias)

    def without_last(self, count: int) -> Segment:
        """The same without the last tokens of the prompts."""
        valid, bias = (None if x is None else x[:, :-count] for x in (self.valid, self.bias))
        return replace(self, length=self.length - count, valid=valid, bias=bias)


@dataclass(eq=False)
class CacheState:
    """How the prompt was reduced for each layer of one cache.

    Attributes:
        prompt_length: its slots as the processor made it.
        batch: how many prompts.
        segments: in the order of their layers.
        common: how many tokens at the end of the prompts every layer has.
        inside: whether the language model runs on this cache at this moment; it counts what is there.
    """

    attachment: Attachment
    prompt_length: int
    batch: int
    segments: list[Segment]
    common: int
    inside: bool = False

    @property
    def counted(self) -> int:
        """The number of the segment by which a cache counts tokens: that of the first layer with attention."""
        first = self.attachment.anatomy.first_attending
        return max(number for number, segment in enumerate(self.segments) if segment.layer <= first)

    def __deepcopy__(self, memo: dict[int, Any]) -> CacheState:
        return replace(self)  # segments are never written to, and the attachment is the same one

    def prompts(self, change: Callable[[Tensor], Tensor]) -> None:
        """The batch of the cache changed."""
        self.segments = [segment.prompts(change) for segment in self.segments]

    def forget(self, count: int) -> None:
        """The last tokens of the prompts were cropped away.

        Raises:
            LabError: some layers do not have them, because a strategy reduced these.
        """
        if count > self.common:
            raise LabError(
                f"cannot crop {count} tokens of the prompt: behind the last image it has {self.common}, and of images "
                "each layer has cached other tokens"
            )
        self.segments = [segment.without_last(count) for segment in self.segments]
        self.prompt_length, self.common = self.prompt_length - count, self.common - count


def bind(past_key_values: Any, state: CacheState) -> None:
    """From now on this cache counts the whole prompt, outside the language model."""
    if not hasattr(past_key_values, "_illava_state"):
        kind: Any = type(past_key_values)
        past_key_values.__class__ = _reduced_cache(kind)
    past_key_values._illava_state = state


def state_of(past_key_values: Any) -> CacheState | None:
    """How the prompt of a cache was reduced, None where no attachment filled it."""
    state: CacheState | None = getattr(past_key_values, "_illava_state", None)
    return state


@memoize
def _reduced_cache(base: Any) -> type:
    class ReducedCache(base):
        """A cache whose layers hold different parts of the prompt. Lengths outside are those of the whole prompt."""

        _illava_state: CacheState

        def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
            state = self._illava_state
            if state.attachment.closed:
                raise LabError("this cache was filled under a strategy that is no longer attached; start a fresh one")
            held: int = super().get_seq_length(*args, **kwargs)
            if state.inside or held == 0:
                return held
            return held + state.prompt_length - state.segments[state.counted].length

        def crop(self, length: int) -> None:
            """Take away the last -`length` tokens; a positive `length` is what is to be left (before 5.13)."""
            count, state = -length if length <= 0 else max(0, self.get_seq_length() - length), self._illava_state
            if count and state.attachment.anatomy.linear:
                raise LabError(
                    "this model has layers with linear attention, which cannot forget tokens; start a fresh cache"
                )
            generated = self.get_seq_length() - state.prompt_length
            if count > generated:
                state.forget(count - generated)
            for layer in self.layers:
                if count:
                    layer.crop(-count)

        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            self._illava_state.prompts(lambda x: x.index_select(0, beam_idx.to(x.device)))
            self._illava_state.batch = len(beam_idx)

        def batch_repeat_interleave(self, repeats: int) -> None:
            self.reorder_cache(torch.arange(self._illava_state.batch).repeat_interleave(repeats))

        def batch_select_indices(self, indices: Tensor) -> None:
            self.reorder_cache(torch.arange(self._illava_state.batch)[indices.cpu()])

    ReducedCache.__name__ = ReducedCache.__qualname__ = f"Reduced{base.__name__}"
    return ReducedCache
