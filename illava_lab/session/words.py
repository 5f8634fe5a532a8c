"""A person's words are plain text: what a tokenizer or a processor takes for a sign of its own is no sign in them."""

from __future__ import annotations

import re
from typing import Any

from transformers import ProcessorMixin


def plain(processor: ProcessorMixin, text: str) -> str:
    """The text with a space in every special word of the model, such as ``<image>``, ``<|im_end|>`` or ``</s>``.

    ``<image>`` becomes ``< image>``, which tokenizers read as words: it is neither a place for an image nor the end of
    a turn. The space comes where a word begins or ends, so that the parts stay what they are.
    """
    signs = re.compile("|".join(re.escape(sign) for sign in _signs(processor)) or r"(?!)")
    while signs.search(text):  # what is left may be another one
        text = signs.sub(lambda found: _broken(found[0]), text)
    return text


def _signs(processor: Any) -> list[str]:
    """Special tokens of the tokenizer, and what the processor itself looks for; the longest first."""
    tokenizer = processor.tokenizer
    found = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found |= {*tokenizer.all_special_tokens}
    found |= {value for name, value in vars(processor).items() if name.endswith("_token")}
    return sorted((sign for sign in found if isinstance(sign, str) and len(sign) > 1), key=len, reverse=True)


def _broken(sign: str) -> str:
    edges = [edge.start() for edge in re.finditer(r"\b", sign) if 0 < edge.start() < len(sign)]
    at = edges[0] if edges else 1
    return f"{sign[:at]} {sign[at:]}"
