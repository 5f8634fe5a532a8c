"""A call that goes on from a reduced prompt: masks and positions for cache layers of different lengths."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.compat import cache_of, causal_mask
from illava_lab.hooks.llm.cache import CacheState


class Decode:
    """One such call.

    Args:
        hidden: (B, new, C) what entered; kwargs: the arguments of the language model; state: of its cache, which counts
            what the first layer has.

    Raises:
        LabError: the cache holds other prompts than this call, or the mask does not fit.
    """

    def __init__(self, attachment: Attachment, hidden: Tensor, kwargs: dict[str, Any], state: CacheState) -> None:
        self.batch, self.new = hidden.shape[:2]
        if state.batch != self.batch:
            raise LabError(f"the cache holds {state.batch} prompts, this call has {self.batch}")
        self.attachment, self.segments = attachment, state.segments
        self._counted = state.counted
        self.generated: int = cache_of(kwargs).get_seq_length() - state.segments[self._counted].length
        logical, mask = state.prompt_length + self.generated, kwargs.get("attention_mask")
        if mask is not None and mask.shape[1] != logical + self.new:
            raise LabError(f"attention_mask must have {logical + self.new} columns, got {mask.shape[1]}")
        self._tail = None if mask is None else mask[:, state.prompt_length :].bool()
        positions = kwargs.get("position_ids")
        if positions is None:
            new = torch.arange(logical, logical + self.new, dtype=torch.long, device=hidden.device)
            positions = new.expand(self.batch, -1)
        self.positions: Tensor = positions
        self._layers: dict[int, dict[str, Any]] = {}

    @cached_property
    def _masks(self) -> list[Tensor | None]:
        return [self._mask(segment.valid, segment.length, self._tail, self.positions) for segment in self.segments]

    def _mask(self, valid: Tensor | None, length: int, tail: Tensor | None, like: Tensor) -> Tensor | None:
        """(B, cached + new) bool of one segment, or None where nothing is hidden."""
        if valid is None and tail is None:
            return None
        if valid is None:
            valid = torch.ones((self.batch, length), dtype=torch.bool, device=like.device)
        if tail is None:
            tail = torch.ones((self.batch, self.generated + self.new), dtype=torch.bool, device=like.device)
        return torch.cat([valid.to(tail.device), tail], 1)

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What the language model is called with."""
        mask, shift = self._masks[self._counted], self.segments[self._counted].shift
        positions = self.positions if shift is None else self.positions - shift[:, None]
        return {**kwargs, "position_ids": positions, "attention_mask": None if mask is None else mask.long()}

    def bias(self, index: int) -> Tensor | None:
        """(B, L) of what a layer has cached of the prompts: see `Segment`."""
        return max((s for s in self.segments if s.layer <= index), key=lambda s: s.layer).bias

    def layer_arguments(self, index: int, hidden: Tensor) -> dict[str, Any]:
        """Mask, and with packed positions rotary tables, for one layer."""
        number = max(i for i, segment in enumerate(self.segments) if segment.layer <= index)
        if number <= self._counted:
            return {}
        if (
            index in self.attachment.anatomy.linear
        ):  # its state holds the prompt: it wants to know what is new and padding
            return {
                "attention_mask": None if self._tail is None or self.new == 1 else self._tail[:, -self.new :].long()
            }
        if number not in self._layers:
            segment, model = self.segments[number], self.attachment.anatomy.language_model
            past = segment.length + self.generated
            out: dict[str, Any] = {"attention_mask": causal_mask(model.config, hidden, self._masks[number], past)}
            if segment.shift is not None:
                moved = self.positions - segment.shift[:, None]
                out["position_embeddings"] = model.rotary_emb(hidden, position_ids=moved)
            self._layers[number] = out
        return self._layers[number]
