"""Tokenizers of whole words, for what the scenes can show and what is asked about them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from scenes import COLORS, COLUMNS, DIGITS, PLACES, PLURALS, ROWS, SHAPES, WORDS
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

SPOKEN = "is the left or right of above below yes no shapes digit word user assistant background object objects"
SPOKEN += " please answer picture a an and to with not"


def vocabulary(special: tuple[str, ...], wordings: Iterable[str]) -> list[str]:
    """Special tokens, then every word once, then marks."""
    asked = re.findall(r"[a-z]+", " ".join(wordings).lower())
    words = [*COLORS, *SHAPES, *PLURALS.values(), *DIGITS, *WORDS, *ROWS, *COLUMNS, *asked, *SPOKEN.split()]
    return [*special, *dict.fromkeys([*words, *".,:;!?'\"()-"])]


def known() -> dict[str, list[str]]:
    """What a picture can show, by the name of its group; knows.json beside the weights says it to `illava_lab`."""
    groups = {"shapes": SHAPES, "colors": COLORS, "places": PLACES, "digits": DIGITS, "printed words": WORDS}
    return {name: list(words) for name, words in groups.items()}


def build_tokenizer(words: list[str], **visual: str) -> PreTrainedTokenizerFast:
    """`visual`: names of the placeholders, such as image_token="<image>"."""
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="[UNK]",
        extra_special_tokens=visual, padding_side="left", model_max_length=2048,
    )  # fmt: skip
