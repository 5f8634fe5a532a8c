"""A call that goes on from a reduced prompt: masks and positions for caches of different lengths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.hooks.compat import causal_mask
from illava_lab.hooks.llm.cache import CacheState
from illava_lab.hooks.llm.call import Decode
from illava_lab.models.families import Anatomy


def start_decoding(
    hidden: Tensor, mask: Tensor | None, kwargs: dict[str, Any], state: CacheState, past: int
) -> tuple[Decode, dict[str, Any]]:
    """The state of the call, and the arguments with which the language model goes on.

    Raises:
        LabError: the cache holds other prompts than this call, or the mask does not fit.
    """
    batch, new = hidden.shape[:2]
    if state.segments[0].valid.shape[0] != batch:
        raise LabError(f"the cache holds {state.segments[0].valid.shape[0]} prompts, this call has {batch}")
    generated = past - state.segments[0].prompt.shape[1]
    logical = state.prompt_length + generated
    if mask is not None and mask.shape[1] != logical + new:
        raise LabError(f"attention_mask must have {logical + new} columns, got {mask.shape[1]}")
    shape = (batch, generated + new)
    tail = torch.ones(shape, dtype=torch.bool, device=hidden.device)
    if mask is not None:
        tail = mask[:, state.prompt_length :].bool()
    masks = [None if s.full and mask is None else torch.cat([s.valid, tail], 1) for s in state.segments]
    position_ids = kwargs.get("position_ids")
    if position_ids is None:
        position_ids = (torch.arange(new, device=hidden.device) + logical).expand(batch, -1)
    call = Decode(state.segments, position_ids, masks, generated)
    shift = state.segments[0].shift
    return call, {
        **kwargs,
        "position_ids": position_ids if shift is None else position_ids - shift[:, None],
        "attention_mask": None if masks[0] is None else masks[0].long(),
    }


def layer_arguments(anatomy: Anatomy, packed: bool, call: Decode, segment: int, hidden: Tensor) -> dict[str, Any]:
    """Mask, and with packed positions rotary tables, for the layers of one segment."""
    kept_here = call.segments[segment]
    past = kept_here.prompt.shape[1] + call.past
    model = anatomy.language_model
    out: dict[str, Any] = {"attention_mask": causal_mask(model.config, hidden, call.masks[segment], past)}
    if packed:
        assert kept_here.shift is not None
        moved = call.positions - kept_here.shift[:, None]
        out["position_embeddings"] = model.rotary_emb(hidden, position_ids=moved)
    return out
