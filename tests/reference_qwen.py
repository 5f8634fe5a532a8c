"""A whole Qwen2-VL or Qwen2.5-VL by hand, as `reference` has LLaVA: one frame at a time, every attention a full matrix with
windows as a mask over coordinates, every reduction a dense matrix over cells, no packing, no permutation, no cache.
"""

from __future__ import annotations

import torch
from reference import _anchors, _heads, fastv_matrix, illava_matrix, tome_matrix
from torch import Tensor


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate (H, N, d) by (N, d/2) angles."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def encode(model, pixels: Tensor, grid: tuple[int, int], plan: dict[int, int], rule: str) -> tuple[Tensor, list[int]]:
    """(M, C) features of one image or temporal slice in raster order, and the cells in whose places they stand.

    Args:
        pixels: (4 * cells, values) the patches as the processor flattens them; grid: (height, width) in cells.
    """
    tower, vision = model.model.visual, model.config.vision_config
    heads, count = vision.num_heads, grid[0] * grid[1]
    x = tower.patch_embed(pixels)
    anchor, sizes = list(range(count)), [1.0] * count
    for index, block in enumerate(tower.blocks):
        row = torch.tensor([2 * (cell // grid[1]) + i for cell in anchor for i in (0, 0, 1, 1)])
        column = torch.tensor([2 * (cell % grid[1]) + j for cell in anchor for j in (0, 1, 0, 1)])
        query, key, value = (
            _heads(part, heads) for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=1)
        )
        quarter = key.shape[-1] // 4
        frequency = 10000.0 ** (-torch.arange(quarter) / quarter)
        angle = torch.cat([row[:, None] * frequency, column[:, None] * frequency], dim=1)
        logits = _turn(query, angle) @ _turn(key, angle).transpose(1, 2) / key.shape[-1] ** 0.5
        if rule == "tome":
            logits = logits + torch.tensor(sizes).log().repeat_interleave(4)
        if index not in getattr(vision, "fullatt_block_indexes", [index]):
            side = vision.window_size // vision.patch_size
            apart = (row[:, None] // side != row // side) | (column[:, None] // side != column // side)
            logits = logits.masked_fill(apart, -torch.inf)
        weights = logits.softmax(-1)
        x = x + block.attn.proj((weights @ value).transpose(0, 1).flatten(1))
        if index in plan:
            if rule == "tome":
                matrix = tome_matrix(key.mean(0).view(len(anchor), 4, -1).mean(1), sizes, plan[index])
            else:
                matrix = illava_matrix(weights.mean((0, 1)).view(-1, 4).mean(1).tolist(), plan[index])
            anchor = _anchors(matrix, anchor, rule)
            x = torch.einsum("mn,npc->mpc", matrix.to(x.dtype), x.view(-1, 4, x.shape[1])).flatten(0, 1)
            sizes = ((matrix > 0).double() @ torch.tensor(sizes).double()).tolist()
        x = x + block.mlp(block.norm2(x))
    order = sorted(range(len(anchor)), key=lambda m: anchor[m])
    return tower.merger(x.view(len(anchor), 4, -1)[order].flatten(0, 1)), [anchor[m] for m in order]


@torch.no_grad()
def logits(
    model, ids: list[int], inputs: dict[str, Tensor], *, prompt: int, encoder: dict[int, int], llm: dict[int, int | float], rule: str
) -> Tensor:
    """(V,) logits after the last token of `ids`, of which the first `prompt` are the prompt.

    Args:
        inputs: pixels and grids of one prompt, as the processor makes them.
        llm: counts or fractions kept, of every image or video on its own.
    """
    config, text = model.config, model.config.text_config
    # placeholder -> pixels, grids, positions between two temporal slices
    waiting = {
        config.image_token_id: [inputs.get("pixel_values"), inputs.get("image_grid_thw", torch.zeros(0, 3)).tolist(), 1],
        config.video_token_id: [inputs.get("pixel_values_videos"), inputs.get("video_grid_thw", torch.zeros(0, 3)).tolist(),
                                getattr(config.vision_config, "tokens_per_second", 1)],
    }  # fmt: skip
    x, position, image = [], [], []  # image: which one a visual token belongs to, -1 for text
    slot, at, item = 0, 0, 0
    while slot < len(ids):
        if ids[slot] in waiting and slot < prompt:
            pixels, grids, interval = waiting[ids[slot]]
            time, height, width = grids.pop(0)
            height, width = height // 2, width // 2
            own, waiting[ids[slot]][0] = pixels.tensor_split([4 * time * height * width])
            for t, frame in enumerate(own.chunk(time)):
                for feature, cell in zip(*encode(model, frame, (height, width), encoder, rule), strict=True):
                    x.append(feature)
                    position.append([at + t * interval, at + cell // width, at + cell % width])
                    image.append(item)
            slot, at, item = slot + time * height * width, at + max(height, width), item + 1
        else:
            x.append(model.model.language_model.embed_tokens.weight[ids[slot]])
            position.append([at] * 3)
            image.append(-1)
            slot, at = slot + 1, at + 1
    x, position, image = torch.stack(x), torch.tensor(position), torch.tensor(image)
    last = len(x) - 1 - (len(ids) - prompt)
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    half = text.hidden_size // heads // 2
    frequency = text.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    axis = torch.tensor([a for a, n in enumerate(text.rope_parameters["mrope_section"]) for _ in range(n)])
    row = None
    for index, layer in enumerate(model.model.language_model.layers):
        if index in llm:
            kept = image < 0
            merged = x.clone()
            for i in range(item):
                here, count = torch.nonzero(image == i)[:, 0], llm[index]
                count = len(here) - round(len(here) * (1 - count)) if isinstance(count, float) else count
                rule_of = fastv_matrix if rule == "fastv" else illava_matrix
                matrix = rule_of(row[here].tolist(), count)
                own = torch.tensor(_anchors(matrix, here.tolist(), "illava"))
                merged[own] = matrix.to(x.dtype) @ x[here]
                kept[own] = True
            last = int(kept[: last + 1].sum()) - 1
            x, position, image = merged[kept], position[kept], image[kept]
        angle = position[:, axis] * frequency
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        query = _turn(_heads(attention.q_proj(normed), heads), angle)
        key = _turn(_heads(attention.k_proj(normed), groups), angle).repeat_interleave(heads // groups, 0)
        value = _heads(attention.v_proj(normed), groups).repeat_interleave(heads // groups, 0)
        score = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5
        weights = score.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf).softmax(-1)
        row = weights[:, last].mean(0)
        x = x + attention.o_proj((weights @ value).transpose(0, 1).flatten(1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.language_model.norm(x[-1]))
