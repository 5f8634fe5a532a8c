"""Small random Qwen-VLs, a GLM-4.1V, which is built like them, and their inputs, for `conftest`."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from illava_lab.models.families import STATES_GO_ON

QWENS = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe", *(["qwen3.5-vl"] if STATES_GO_ON else []))
PACKED = (*QWENS, "glm-4.1v")
IMAGE_TOKEN, VIDEO_TOKEN, START, END = 3, 63, 61, 62
PATCH = 4  # pixels; a cell is 2 x 2 patches, a window 4 x 4 cells as in the large ones

WIDTHS = dict(hidden_size=32, out_hidden_size=48, intermediate_size=64)
VISION = dict(depth=4, num_heads=4, patch_size=PATCH)
TEXT = dict(
    vocab_size=64, hidden_size=48, intermediate_size=64,
    num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, rope_parameters={"rope_type": "default", "mrope_section": [2, 2, 2]},
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
# A linear layer behind those before which the tests reduce; the published order is every fourth that attends.
HYBRID = dict(
    head_dim=16, num_hidden_layers=5, layer_types=[*["full_attention"] * 4, "linear_attention"],
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
    rope_parameters={**TEXT["rope_parameters"], "rope_theta": 10000.0, "partial_rotary_factor": 0.75},
)  # fmt: skip
EXPERTS = dict(head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)
SIZES = [(6, 6), (5, 8), (7, 6), (4, 10), (10, 4), (6, 7)]  # (height, width) of pictures, in cells


def random_qwen(
    kind: str, attention: str = "sdpa", deepstack: tuple[int, ...] = (1,), layers: str = ""
) -> PreTrainedModel:
    """A small model of random weights, float32, eval.

    Args:
        kind: "qwen2-vl"; "qwen2.5-vl" with windows in layers 0 and 3; "qwen3-vl" with features of layer 1 added after
            LLM layer 0, and "qwen3-vl-moe" with experts in it; "qwen3.5-vl" with linear attention in its last LLM layer;
            "glm-4.1v", which turns half of each head.
        layers: of "qwen3.5-vl", other LLM layers: "l" for one with linear attention, "f" for full.
    """
    torch.manual_seed(0)
    tokens = dict(
        image_token_id=IMAGE_TOKEN, video_token_id=VIDEO_TOKEN, vision_start_token_id=START, vision_end_token_id=END
    )
    if kind == "qwen2-vl":
        vision = dict(embed_dim=32, hidden_size=48, mlp_ratio=2, **VISION)
        model = Qwen2VLForConditionalGeneration
        config = Qwen2VLConfig(text_config=TEXT, vision_config=vision, **tokens)
    elif kind == "qwen3-vl":
        vision = dict(WIDTHS, num_position_embeddings=25, deepstack_visual_indexes=deepstack, **VISION)
        model = Qwen3VLForConditionalGeneration
        config = Qwen3VLConfig(text_config={**TEXT, "head_dim": 12}, vision_config=vision, **tokens)
    elif kind == "qwen3-vl-moe":
        vision = dict(WIDTHS, num_position_embeddings=25, deepstack_visual_indexes=deepstack, **VISION)
        model = Qwen3VLMoeForConditionalGeneration
        config = Qwen3VLMoeConfig(text_config={**TEXT, **EXPERTS}, vision_config=vision, **tokens)
    elif kind == "qwen3.5-vl":
        vision = dict(WIDTHS, num_position_embeddings=25, **VISION)
        model = Qwen3_5ForConditionalGeneration
        own = [{"l": "linear_attention", "f": "full_attention"}[layer] for layer in layers]
        hybrid = {**HYBRID, **(dict(num_hidden_layers=len(own), layer_types=own) if own else {})}
        config = Qwen3_5Config(text_config={**TEXT, **hybrid}, vision_config=vision, **tokens)
    elif kind == "glm-4.1v":
        vision = dict(WIDTHS, image_size=5 * PATCH, **VISION)
        rope = {"rope_type": "default", "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5}
        model = Glm4vForConditionalGeneration
        config = Glm4vConfig(text_config={**TEXT, "rope_parameters": rope}, vision_config=vision, **tokens)
    else:
        vision = dict(WIDTHS, window_size=8 * PATCH, fullatt_block_indexes=[1, 2], **VISION)
        model = Qwen2_5_VLForConditionalGeneration
        config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=vision, **tokens)
    config._attn_implementation = attention
    model = model(config).eval()
    # Random weights as they come attend almost evenly; larger ones make every token matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(
                part in name
                for part in (
                    "qkv.weight",
                    "q_proj.weight",
                    "k_proj.weight",
                    "v_proj.weight",
                    "embed_tokens",
                    "lm_head",
                    "in_proj",
                    "conv1d",
                    "mlp.gate.weight",
                    "experts",
                )
            ):
                parameter.normal_(0.0, 0.3)
            if (
                any(
                    part in name for part in ("merger", "patch_embed", "pos_embed", "embeddings.position", "downsample")
                )
                and "norm" not in name
            ):
                parameter.normal_(0.0, 0.15)
    return model


def qwen_inputs(kind: str, prompts: list[list[tuple[int, int, int, int] | int]], seeds: list[int]) -> dict[str, Tensor]:
    """Left-padded inputs as Qwen's processor makes them, from pictures of noise.

    From Qwen3-VL on a time stands before each slice.

    Args:
        prompts: what each holds in order: a number of text tokens, or (placeholder, time, height, width) in cells.
    """
    rows, pixels, grids = [], {}, {}
    for prompt, seed in zip(prompts, seeds, strict=True):
        draw, row = torch.Generator().manual_seed(seed), [1]
        for part in prompt:
            if isinstance(part, int):
                row += torch.randint(4, START, (part,), generator=draw).tolist()
                continue
            token, time, height, width = part
            parts = time if kind.startswith("qwen3") else 1
            stamp = [7] if kind.startswith("qwen3") and token == VIDEO_TOKEN else []
            row += [*stamp, START, *[token] * (time // parts * height * width), END] * parts
            pixels.setdefault(token, []).append(
                torch.randn(4 * time * height * width, 3 * 2 * PATCH**2, generator=draw)
            )
            grids.setdefault(token, []).append([time, 2 * height, 2 * width])
        rows.append(row)
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": torch.zeros_like(ids, dtype=torch.int)}
    names = {
        IMAGE_TOKEN: (1, "pixel_values", "image_grid_thw"),
        VIDEO_TOKEN: (2, "pixel_values_videos", "video_grid_thw"),
    }
    for token, (medium, values, grid) in names.items():
        if token in pixels:
            inputs["mm_token_type_ids"][ids == token] = medium
            inputs |= {values: torch.cat(pixels[token]), grid: torch.tensor(grids[token])}
    return inputs
