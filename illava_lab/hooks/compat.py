"""What differs between the supported releases of transformers (5.6 to 5.24), in one place."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask
from transformers.models.llava.modeling_llava import LlavaModel
from transformers.utils import ModelOutput, output_capturing

try:  # before 5.17, packed towers take nothing that was made ahead
    from transformers import vision_utils
except ImportError:
    vision_utils = None

# Where placeholders are counted in ids of any device. Before, what was counted was as large as the states.
COUNTS_PLACEHOLDERS = "expand_as" not in inspect.getsource(LlavaModel.get_placeholder_mask)
# Where models ask their towers for the states of all layers, and those of some could be asked for, which are counted as
# outputs of layers, without what enters the first.
ASKS_FOR_LAYERS = "and hidden_states_layers is None" in inspect.getsource(output_capturing)
# Attention that hides what comes later by itself, where it gets no mask for as many keys as queries.
_CAUSAL = ("sdpa", "flash_attention_2", "flash_attention_3")
_MASK_ARGUMENTS = inspect.signature(create_causal_mask).parameters
# What models call the cache that they are given and return: another name from 5.24 on.
CACHE = "cache" if "cache" in inspect.signature(LlavaModel.forward).parameters else "past_key_values"


def cache_of(given: Mapping[str, Any]) -> Any:
    """The cache among the arguments of a model, or in what it returned, by either name; None where there is none."""
    own = given.get(CACHE)
    if own is not None or isinstance(given, ModelOutput):  # asked for the old name, an output prints a warning
        return own
    return given.get("past_key_values")


class _Lengths:
    """Stands in for a cache where the mask builder only asks how many tokens were there before."""

    is_compileable = False

    def __init__(self, past: int, new: int) -> None:
        self.past, self.new = past, new

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return self.past

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return self.past + self.new, 0


def causal_mask(config: Any, hidden: Tensor, valid: Tensor | None, past: int) -> Tensor | None:
    """The mask that the configured attention wants for `hidden` (B, L, C) after `past` cached tokens.

    Args:
        valid: (B, past + L) bool, False at padding, or None when nothing is padded.
    """
    if valid is None and past == 0 and config._attn_implementation in _CAUSAL:
        return None
    arguments: dict[str, Any] = {
        "config": config,
        "inputs_embeds": hidden,
        "attention_mask": valid,
        CACHE: _Lengths(past, hidden.shape[1]),
    }
    if "cache_position" in _MASK_ARGUMENTS:  # up to 5.6
        arguments["cache_position"] = torch.arange(past, past + hidden.shape[1], device=hidden.device)
    return create_causal_mask(**arguments)
