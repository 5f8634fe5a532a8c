"""One forward pass of the vision-language model: what it was given, and what was encoded for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from illava_lab.hooks.compat import CACHE
from illava_lab.hooks.llm.prompt import Prompt
from illava_lab.models.layout import Medium
from illava_lab.trace.encoded import EncodedImage

_TAKEN = {"inputs_embeds", "attention_mask", "position_ids", CACHE, "use_cache"}
_IGNORED = {"cache_position", "logits_to_keep", "return_dict"}  # what others read


@dataclass(eq=False)
class Call:
    """One forward pass; it lives as long as that.

    Attributes:
        encoded: what was encoded for it, by medium.
        prompt: what lies in every slot, where this is a prefill that reduces.
        llm: what goes on in the language model, a `Prefill` or a `Decode`; None outside it.
    """

    encoded: dict[Medium, list[EncodedImage]]
    prompt: Prompt | None = None
    llm: Any = None


def only_usual(arguments: dict[str, Any]) -> bool:
    """Whether the language model is called with nothing but what `generate` gives it."""
    return {name for name, value in arguments.items() if value is not None and value is not False} <= _TAKEN | _IGNORED
