"""Small random LLaVAs, whose wiring is that of the large ones."""

from __future__ import annotations

import os

# Models this small gain little from threads, and lose much when the threads wait for cores that others use.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import (  # noqa: E402
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

IMAGE_TOKEN = 3
IMAGE_SIZE, PATCH = 48, 8
PATCHES = (IMAGE_SIZE // PATCH) ** 2

VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=4, image_size=IMAGE_SIZE, patch_size=PATCH)
TEXT = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip


def random_llava(kind: str, attention: str = "sdpa") -> LlavaForConditionalGeneration:
    """"clip-llama" (as LLaVA-1.5: CLS, second-last layer) or "siglip-qwen2" (no CLS, last layer), float32, eval."""
    torch.manual_seed(0)
    if kind == "clip-llama":
        config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**TEXT), image_token_index=IMAGE_TOKEN,
                             vision_feature_layer=-2, vision_feature_select_strategy="default")  # fmt: skip
    else:
        config = LlavaConfig(vision_config=SiglipVisionConfig(**VISION), text_config=Qwen2Config(**TEXT), image_token_index=IMAGE_TOKEN,
                             vision_feature_layer=-1, vision_feature_select_strategy="full")  # fmt: skip
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config).eval()
    # Random weights as they come attend almost evenly; larger ones make every token matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "embed_tokens", "lm_head")):
                parameter.normal_(0.0, 0.3)
    return model


@dataclass
class Prompt:
    """One prompt: text lengths before, between and after its images."""

    images: int = 1
    text_after: int = 5
    seed: int = 0


def make_inputs(prompts: list[Prompt]) -> dict[str, Tensor]:
    """Left-padded input_ids, attention_mask and pixel_values of several prompts."""
    rows, pixels = [], []
    for prompt in prompts:
        draw = torch.Generator().manual_seed(prompt.seed)
        text = lambda n: torch.randint(4, 64, (n,), generator=draw).tolist()  # noqa: E731
        row = [1, *text(2)]
        for _ in range(prompt.images):
            row += [IMAGE_TOKEN] * PATCHES + text(1)
            pixels.append(torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=draw))
        rows.append(row + text(prompt.text_after))
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    if pixels:
        inputs["pixel_values"] = torch.stack(pixels)
    return inputs


@pytest.fixture(scope="session", params=["clip-llama", "siglip-qwen2"])
def model(request: pytest.FixtureRequest) -> LlavaForConditionalGeneration:
    return random_llava(request.param)
