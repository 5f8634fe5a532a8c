"""An untrained LLaVA-1.5 for the scenes: processor and a small LlavaForConditionalGeneration."""

from __future__ import annotations

import torch
from questions import WORDINGS
from scenes import SIZE
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from words import build_tokenizer, vocabulary

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


def words() -> list[str]:
    return vocabulary(SPECIAL, (text for texts in WORDINGS.values() for text in texts))


def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(words(), image_token="<image>")


def build_processor() -> LlavaProcessor:
    side = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        images, tokenizer(), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, image_token="<image>", chat_template=CHAT_TEMPLATE,
    )  # fmt: skip


def build_model(seed: int) -> LlavaForConditionalGeneration:
    known = words()
    eyes = CLIPVisionConfig(
        hidden_size=160, intermediate_size=512, num_hidden_layers=8, num_attention_heads=5,
        image_size=SIZE, patch_size=PATCH,
    )  # fmt: skip
    mind = LlamaConfig(
        vocab_size=len(known), hidden_size=160, intermediate_size=448, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.05,
        pad_token_id=known.index("<pad>"), bos_token_id=known.index("<s>"), eos_token_id=known.index("</s>"),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=eyes, text_config=mind, image_token_index=known.index("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=GRID * GRID,
        pad_token_id=mind.pad_token_id, bos_token_id=mind.bos_token_id, eos_token_id=mind.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(
        bos_token_id=mind.bos_token_id, eos_token_id=mind.eos_token_id, pad_token_id=mind.pad_token_id, do_sample=False
    )
    return model
