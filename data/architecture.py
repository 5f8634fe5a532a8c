"""An untrained LLaVA for the scenes: tokenizer, processor and a small LlavaForConditionalGeneration."""

from __future__ import annotations

import re

import torch
from scenes import COLORS, COLUMNS, DIGITS, PLACES, PLURALS, ROWS, SHAPES, SIZE, WORDINGS, WORDS
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

PATCH = 8
GRID = SIZE // PATCH
SPECIAL = ("<pad>", "<s>", "</s>", "[UNK]", "<image>")
# One user turn before the question; the training packs many questions behind it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for item in message['content'] %}{% if item['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def vocabulary() -> list[str]:
    wordings = " ".join(text for texts in WORDINGS.values() for text in texts)
    spoken = re.findall(r"[a-z]+", wordings.lower())
    words = [*COLORS, *SHAPES, *PLURALS.values(), *DIGITS, *WORDS, *ROWS, *COLUMNS, *spoken]
    words += ["is", "the", "left", "or", "right", "of", "above", "below", "yes", "no", "shapes", "digit", "word"]
    words += [
        "user",
        "assistant",
        "background",
        "object",
        "objects",
        "please",
        "answer",
        "picture",
        "a",
        "an",
        "and",
        "to",
        "with",
        "not",
    ]
    return [*SPECIAL, *dict.fromkeys([*words, *".,:;!?'\"()-"])]


def known() -> dict[str, list[str]]:
    """What a picture can show, by the name of its group; knows.json beside the weights says it to `illava_lab`."""
    groups = {"shapes": SHAPES, "colors": COLORS, "places": PLACES, "digits": DIGITS, "printed words": WORDS}
    return {name: list(words) for name, words in groups.items()}


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = vocabulary()
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", words.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="[UNK]",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left", model_max_length=2048,
    )  # fmt: skip


def build_processor() -> LlavaProcessor:
    side = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        images, build_tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token="<image>", chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def build_model(seed: int) -> LlavaForConditionalGeneration:
    words = vocabulary()
    eyes = CLIPVisionConfig(
        hidden_size=160, intermediate_size=512, num_hidden_layers=8, num_attention_heads=5,
        image_size=SIZE, patch_size=PATCH,
    )  # fmt: skip
    mind = LlamaConfig(
        vocab_size=len(words), hidden_size=160, intermediate_size=448, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.05,
        pad_token_id=words.index("<pad>"), bos_token_id=words.index("<s>"), eos_token_id=words.index("</s>"),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=eyes, text_config=mind, image_token_index=words.index("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=GRID * GRID,
        pad_token_id=mind.pad_token_id, bos_token_id=mind.bos_token_id, eos_token_id=mind.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(
        bos_token_id=mind.bos_token_id, eos_token_id=mind.eos_token_id, pad_token_id=mind.pad_token_id, do_sample=False
    )
    return model
