"""A whole Qwen-VL or GLM-4.1V by hand, as `reference` has LLaVA.

One frame at a time, every attention a full matrix with windows as a mask over coordinates, every reduction a dense
matrix over cells, linear attention token by token; no packed sequence, no permutation, no cache.
"""

from __future__ import annotations

import torch
from helpers.reference import _anchors, _heads, fastv_matrix, illava_matrix, tome_matrix
from torch import Tensor
from torch.nn import functional


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate (H, N, d) by (N, d/2) angles."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def _turn_pairs(x: Tensor, angle: Tensor) -> Tensor:
    """The same of neighbours."""
    first, second = x[..., ::2], x[..., 1::2]
    pairs = [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()]
    return torch.stack(pairs, dim=-1).flatten(-2)


def encode(
    model, pixels: Tensor, grid: tuple[int, int], plan: dict[int, int], rule: str
) -> tuple[Tensor, list[int], list[dict[int, Tensor]]]:
    """(M, C) features of one image or temporal slice in raster order, the cells in whose places they stand, and what
    deepstack takes from the cells of layers in between.

    Args:
        pixels: (4 * cells, values) the patches as the processor flattens them; grid: (height, width) in cells.
    """
    tower, vision = model.model.visual, model.config.vision_config
    heads, count = vision.num_heads, grid[0] * grid[1]
    x = tower.patch_embed(pixels)
    anchor, sizes, deep = list(range(count)), [1.0] * count, []
    glm = model.config.model_type == "glm4v"
    if glm or hasattr(tower, "pos_embed"):
        weight = tower.embeddings.position_embedding.weight if glm else tower.pos_embed.weight
        x = tower.post_conv_layernorm(x) if glm else x
        table = weight.T.unflatten(1, [int(len(weight) ** 0.5)] * 2)[None]
        how = dict(mode="bicubic") if glm else dict(mode="bilinear", align_corners=True)
        table = functional.interpolate(table, (2 * grid[0], 2 * grid[1]), **how)[0]
        x = x + table.unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 3, 4, 0).reshape(x.shape)
    for index, block in enumerate(tower.blocks):
        row = torch.tensor([2 * (cell // grid[1]) + i for cell in anchor for i in (0, 0, 1, 1)])
        column = torch.tensor([2 * (cell % grid[1]) + j for cell in anchor for j in (0, 1, 0, 1)])
        query, key, value = (_heads(part, heads) for part in block.attn.qkv(block.norm1(x)).chunk(3, dim=1))
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
        if index in getattr(vision, "deepstack_visual_indexes", ()):
            deep.append(dict(zip(anchor, tower.deepstack_merger_list[len(deep)](x), strict=True)))
    order = sorted(range(len(anchor)), key=lambda m: anchor[m])
    if glm:
        cells = tower.post_layernorm(x).view(len(anchor), 2, 2, -1)[order].permute(0, 3, 1, 2)
        return tower.merger(tower.downsample(cells).flatten(1)), [anchor[m] for m in order], deep
    return tower.merger(x.view(len(anchor), 4, -1)[order].flatten(0, 1)), [anchor[m] for m in order], deep


def _attend(
    attention, x: Tensor, angle: Tensor, heads: int, groups: int, last: int, turn=_turn
) -> tuple[Tensor, Tensor]:
    """(N, C) what an attention makes of x (N, C), and (N,) what the token `last` attends to."""
    query, key = _heads(attention.q_proj(x), heads), _heads(attention.k_proj(x), groups)
    gated = query.shape[-1] > key.shape[-1]
    if gated:
        query, gate = query.chunk(2, dim=-1)
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    turned = 2 * angle.shape[1]  # the rest has no position
    query, key = (torch.cat([turn(part[..., :turned], angle), part[..., turned:]], dim=-1) for part in (query, key))
    key = key.repeat_interleave(heads // groups, 0)
    value = _heads(attention.v_proj(x), groups).repeat_interleave(heads // groups, 0)
    score = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5
    weights = score.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf).softmax(-1)
    out = weights @ value
    out = out * gate.sigmoid() if gated else out
    return attention.o_proj(out.transpose(0, 1).flatten(1)), weights[:, last].mean(0)


def _delta_rule(linear, x: Tensor) -> Tensor:
    """(N, C) what linear attention makes of x (N, C), token by token: the state (heads, d, e) forgets, and is corrected
    to give each key its value."""
    heads, kernel = linear.num_v_heads, linear.conv1d.weight[:, 0]  # (channels, taps)
    seen = functional.pad(linear.in_proj_qkv(x), (0, 0, kernel.shape[1] - 1, 0)).unfold(0, kernel.shape[1], 1)
    parts = functional.silu((seen * kernel).sum(-1)).split([linear.key_dim, linear.key_dim, linear.value_dim], dim=1)
    query, key, value = (part.unflatten(1, (-1, width)) for part, width in
                         zip(parts, (linear.head_k_dim, linear.head_k_dim, linear.head_v_dim), strict=True))  # fmt: skip
    query, key = (
        functional.normalize(part, dim=-1).repeat_interleave(heads // linear.num_k_heads, 1) for part in (query, key)
    )
    rate, decay = (
        linear.in_proj_b(x).sigmoid(),
        -linear.A_log.exp() * functional.softplus(linear.in_proj_a(x) + linear.dt_bias),
    )
    state, out = torch.zeros(heads, linear.head_k_dim, linear.head_v_dim), []
    for token in range(len(x)):
        state = state * decay[token].exp()[:, None, None]
        known = (key[token][..., None] * state).sum(1)
        state = state + key[token][..., None] * ((value[token] - known) * rate[token][:, None])[:, None]
        out.append((query[token][..., None] * state).sum(1) / linear.head_k_dim**0.5)
    gate = linear.in_proj_z(x).unflatten(1, (heads, -1))
    return linear.out_proj(linear.norm(torch.stack(out).flatten(0, 1), gate.flatten(0, 1)).view(len(x), -1))


@torch.no_grad()
def logits(
    model, ids: list[int], inputs: dict[str, Tensor], *,
    prompt: int, encoder: dict[int, int], llm: dict[int, int | float], rule: str,
) -> Tensor:  # fmt: skip
    """(V,) logits after the last token of `ids`, of which the first `prompt` are the prompt.

    Args:
        inputs: pixels and grids of one prompt, as the processor makes them.
        llm: counts or fractions kept, of every image or video on its own.
    """
    config, text = model.config, model.config.text_config
    media = (
        (config.image_token_id, inputs.get("pixel_values"), inputs.get("image_grid_thw"), 1),
        (config.video_token_id, inputs.get("pixel_values_videos"), inputs.get("video_grid_thw"),
         getattr(config.vision_config, "tokens_per_second", int(config.model_type == "qwen2_vl"))),
    )  # fmt: skip
    frames: dict[int, list] = {}  # placeholder -> (its image or video, how much later in time, pixels, grid)
    for token, pixels, grids, interval in media:
        frames[token] = []
        for item, (time, height, width) in enumerate(grids.tolist() if grids is not None else []):
            own, pixels = pixels.tensor_split([time * height * width])
            for t, frame in enumerate(own.chunk(time)):
                frames[token].append(((token, item), t * interval, frame, (height // 2, width // 2)))
    x, position, image, deep = [], [], [], []  # image: which one a visual token belongs to, None for text
    slot = at = 0
    while slot < len(ids):
        if ids[slot] in frames and slot < prompt:
            token = ids[slot]
            owner, later = frames[token][0][0], 0
            while ids[slot] == token and frames[token] and frames[token][0][0] == owner:
                _, after, pixels, (height, width) = frames[token].pop(0)
                features, places, taken = encode(model, pixels, (height, width), encoder, rule)
                for feature, cell in zip(features, places, strict=True):
                    x.append(feature)
                    position.append([at + after, at + cell // width, at + cell % width])
                    image.append(owner)
                    deep.append([cells[cell] for cells in taken])
                slot, later = slot + height * width, max(height, width)
            at += later
        else:
            x.append(model.model.language_model.embed_tokens.weight[ids[slot]])
            position.append([at] * 3)
            image.append(None)
            slot, at = slot + 1, at + 1
    owners = sorted({owner for owner in image if owner})
    image = [-1 if owner is None else owners.index(owner) for owner in image]
    x, position, image = torch.stack(x), torch.tensor(position), torch.tensor(image)
    last = len(x) - 1 - (len(ids) - prompt)
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    glm = config.model_type == "glm4v"
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    half = round(width * text.rope_parameters.get("partial_rotary_factor", 1)) // 2
    frequency = text.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    sections = text.rope_parameters["mrope_section"]
    axis = torch.tensor([a for a, n in enumerate(sections) for _ in range(n)])
    if config.model_type.startswith("qwen3"):  # the axes take turns
        axis = torch.tensor([i % 3 if i < 3 * sections[i % 3] else 0 for i in range(half)])
    row = None
    for index, layer in enumerate(model.model.language_model.layers):
        if index in llm:
            kept = image < 0
            merged = x.clone()
            for i in range(len(owners)):
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
        normed = layer.input_layernorm(x)
        if hasattr(layer, "linear_attn"):
            mixed = _delta_rule(layer.linear_attn, normed)
        else:
            turn = _turn_pairs if glm else _turn
            mixed, row = _attend(layer.self_attn, normed, angle, heads, groups, last, turn)
        x = x + (layer.post_self_attn_layernorm(mixed) if glm else mixed)
        mixed = layer.mlp(layer.post_attention_layernorm(x)[None])[0]
        x = x + (layer.post_mlp_layernorm(mixed) if glm else mixed)
        if index < len(next((taken for taken in deep), [])):
            x[image >= 0] += torch.stack([taken[index] for taken in deep])
    return model.lm_head(model.model.language_model.norm(x[-1]))
