"""An untrained LLaVA-OneVision: processor and a small LlavaOnevisionForConditionalGeneration.

A picture alone is seen whole and in crops, several are seen whole, and a video's frames are pooled to a quarter of
their tokens.
"""

from __future__ import annotations

import films
import large
import questions
import several
import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2Config,
    SiglipVisionConfig,
)
from words import build_tokenizer, vocabulary

from illava_lab.models import processors

SIDE = 64  # pixels of a view
PATCH = 8
GRID = SIDE // PATCH
PINPOINTS = [[SIDE, SIDE], [SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
SPECIAL = ("<pad>", "<s>", "</s>", "[UNK]", "<image>", "<video>")
MORE = (
    "words",
    "digits",
    "same",
    "color",
    "show",
    "shows",
    "images",
    "image",
    "video",
    "frame",
    "frames",
    "picture",
    "pictures",
)
# What a turn shows comes first; several pictures are numbered.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set pictures = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% for item in pictures %}"
    "{% if pictures | length > 1 %}{{ 'Picture ' ~ loop.index ~ ': ' }}{% endif %}{{ '<image>\n' }}{% endfor %}"
    "{% for item in message['content'] %}{% if item['type'] == 'video' %}{{ '<video>\n' }}{% endif %}{% endfor %}"
    "{% for item in message['content'] %}{% if item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def words() -> list[str]:
    asked = [text for kind in (questions, several, large, films) for texts in kind.WORDINGS.values() for text in texts]
    return vocabulary(SPECIAL, [*asked, *films.WAYS, *MORE])


def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(words(), image_token="<image>", video_token="<video>")


def build_processor() -> ProcessorMixin:
    """Through the lab, which needs no torchvision for it."""
    pixels = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    settings = {
        "image_processor": pixels
        | {"image_processor_type": "LlavaOnevisionImageProcessor", "image_grid_pinpoints": PINPOINTS},
        "video_processor": pixels,
        "num_image_tokens": GRID * GRID,
        "vision_feature_select_strategy": "full",
    }
    return processors.build_processor(LlavaOnevisionConfig(), settings, tokenizer(), CHAT_TEMPLATE)


def build_model(seed: int) -> LlavaOnevisionForConditionalGeneration:
    known = words()
    eyes = SiglipVisionConfig(
        hidden_size=160, intermediate_size=512, num_hidden_layers=8, num_attention_heads=5,
        image_size=SIDE, patch_size=PATCH, vision_use_head=False,
    )  # fmt: skip
    mind = Qwen2Config(
        vocab_size=len(known), hidden_size=160, intermediate_size=448, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.05,
        pad_token_id=known.index("<pad>"), bos_token_id=known.index("<s>"), eos_token_id=known.index("</s>"),
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=eyes, text_config=mind, image_token_index=known.index("<image>"),
        video_token_index=known.index("<video>"), vision_feature_layer=-1, vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9", image_grid_pinpoints=PINPOINTS,
        pad_token_id=mind.pad_token_id, bos_token_id=mind.bos_token_id, eos_token_id=mind.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaOnevisionForConditionalGeneration(config)
    model.generation_config.update(
        bos_token_id=mind.bos_token_id, eos_token_id=mind.eos_token_id, pad_token_id=mind.pad_token_id, do_sample=False
    )
    return model
