"""Slow, plain re-statements of what the lab does, written from the formulas and sharing none of its code.

`logits` runs a whole LLaVA by hand on one prompt: every attention as a full matrix, every reduction as a dense matrix
built by a naive rule, no cache, no hooks. Only the weights of the linear layers and norms are the model's.

What a placeholder stands for is a "cell": a dictionary from patches (crop after crop) to weights, empty for a newline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from helpers.qwen import END
from torch import Tensor

Rule = Callable[..., Tensor]


# ---------------------------------------------------------------------------------------------- the rules, naively
def _selection(kept: list[int], count: int) -> Tensor:
    matrix = torch.zeros(len(kept), count, dtype=torch.float64)
    for slot, token in enumerate(kept):
        matrix[slot, token] = 1.0
    return matrix


def illava_matrix(score: list[float], keep: int, protected: int = 0) -> Tensor:
    """Sections 1.1 and 1.3 of the method notes: the R+1 lowest scores merge into the highest of them."""
    count = len(score)
    removed = count - keep
    if removed == 0:
        return torch.eye(count, dtype=torch.float64)
    lowest = sorted(range(protected, count), key=lambda j: (score[j], -j))[: removed + 1]
    target = lowest[-1]
    kept = [j for j in range(count) if j not in lowest[:-1]]
    matrix = _selection(kept, count)
    row = kept.index(target)
    matrix[row] = 0.0
    for a, token in enumerate(lowest):
        matrix[row, token] = (removed + 1 - a) / ((removed + 1) * (removed + 2) / 2)
    return matrix


def fastv_matrix(score: list[float], keep: int) -> Tensor:
    best = sorted(range(len(score)), key=lambda j: (-score[j], j))[:keep]
    return _selection(sorted(best), len(score))


def tome_matrix(keys: Tensor, sizes: list[float], keep: int, protected: int = 0) -> Tensor:
    """Section 2.1: bipartite soft matching with sizes; slots are unmerged A (sorted if CLS leads), then B."""
    count = len(sizes)
    cosine = lambda a, b: float(keys[a] @ keys[b] / keys[a].norm() / keys[b].norm())
    best: list[tuple[float, int, int]] = []
    for a in range(0, count, 2):
        if a < protected:
            best.append((-torch.inf, a, 1))
            continue
        similarity, b = max((cosine(a, b), -b) for b in range(1, count, 2))
        best.append((similarity, a, -b))
    best.sort(key=lambda item: -item[0])
    merged, unmerged = best[: count - keep], [a for _, a, _ in best[count - keep :]]
    if protected:
        unmerged.sort()
    slots = unmerged + list(range(1, count, 2))
    matrix = _selection(slots, count)
    for b in range(1, count, 2):
        members = [b] + [a for _, a, into in merged if into == b]
        total = sum(sizes[m] for m in members)
        for m in members:
            matrix[slots.index(b), m] = sizes[m] / total
    return matrix


# ---------------------------------------------------------------------------------------------- from patches to cells
Cells = list[dict[int, float]]


def anyres_cells(
    size: tuple[int, int], resolutions: list[list[int]], pixels: int, side: int, most: int | None = None
) -> tuple[int, Cells]:
    """(crops, cells) of an image of (height, width): section 1.2 of the method notes, point 3.

    Args:
        pixels, side: edge of a crop, in pixels and in patches.
        most: of anyres_max: with clearly more patches than this many crops have, the stitched grid is shrunk.
    """
    height, width = size

    def fit(resolution: list[int]) -> tuple[int, int]:
        scale = min(resolution[1] / width, resolution[0] / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        return used, -(resolution[0] * resolution[1] - used)

    best = max(resolutions, key=fit)
    down, across = best[0] // pixels, best[1] // pixels
    grid = [
        [
            {(1 + r // side * across + c // side) * side**2 + r % side * side + c % side: 1.0}
            for c in range(across * side)
        ]
        for r in range(down * side)
    ]
    if width / height > across / down:
        cut = (len(grid) - int(round(height * len(grid[0]) / width, 7))) // 2
        grid = grid[cut : len(grid) - cut]
    else:
        cut = (len(grid[0]) - int(round(width * len(grid) / height, 7))) // 2
        grid = [row[cut : len(row) - cut] for row in grid]
    times = math.sqrt(len(grid) * len(grid[0]) / (most * side**2)) if most and grid else 0
    if times > 1.1:
        grid = bilinear(grid, int(len(grid) // times), int(len(grid[0]) // times))
    stitched = [cell for row in grid for cell in [*row, {}]]
    return 1 + down * across, [{patch: 1.0} for patch in range(side**2)] + stitched


def pooled_cells(side: int) -> Cells:
    """Of one video frame of side x side patches: half the side, rounded up."""
    grid = [[{r * side + c: 1.0} for c in range(side)] for r in range(side)]
    return [cell for row in bilinear(grid, -(-side // 2), -(-side // 2)) for cell in row]


def averaged_cells(side: int) -> Cells:
    """Of one video frame of side x side patches: the mean of every block of 2 x 2."""
    return [
        {(r + i) * side + c + j: 0.25 for i in range(2) for j in range(2)}
        for r in range(0, side - 1, 2)
        for c in range(0, side - 1, 2)
    ]


def frame_cells(kind: str, side: int) -> tuple[Cells, bool]:
    """(cells of a frame, is there a newline behind the last) of a family that pools."""
    return (averaged_cells(side), False) if "next" in kind else (pooled_cells(side), True)


def bilinear(grid: list[Cells], height: int, width: int) -> list[Cells]:
    """Resize by the two nearest rows and columns of (u + 1/2) H/h - 1/2, clamped to the grid."""

    def nearest(u: int, old: int, new: int) -> list[tuple[int, float]]:
        at = max(0.0, (u + 0.5) * old / new - 0.5)
        low = int(at)
        return [(low, 1 - (at - low)), (min(low + 1, old - 1), at - low)]

    out = []
    for u in range(height):
        row = []
        for v in range(width):
            cell: dict[int, float] = {}
            for r, a in nearest(u, len(grid), height):
                for c, b in nearest(v, len(grid[0]), width):
                    for patch, weight in grid[r][c].items():
                        cell[patch] = cell.get(patch, 0.0) + a * b * weight
            row.append({patch: weight for patch, weight in cell.items() if weight > 1e-6})
        out.append(row)
    return out


def surviving_cells(cells: Cells, alive: set[int], kept: float) -> list[dict[int, float] | None]:
    """Weights over the patches that are there; None where a cell is gone. Interpolated cells compete by coverage."""
    left = [{patch: weight for patch, weight in cell.items() if patch in alive} for cell in cells]
    coverage = [sum(cell.values()) for cell in left]
    visual = [i for i, cell in enumerate(cells) if cell]
    chosen = [i for i in visual if left[i]]
    if kept < 1 and any(len(cell) > 1 for cell in cells):
        best = sorted(visual, key=lambda i: (-round(coverage[i], 3), i))[: max(1, round(len(visual) * kept))]
        chosen = [i for i in best if left[i]]
    out: list[dict[int, float] | None] = [None if cell else {} for cell in cells]
    for i in chosen:
        out[i] = {patch: weight / coverage[i] for patch, weight in left[i].items()}
    return out


def visuals(
    inputs: dict[str, Tensor], picture: Callable[..., tuple[int, Cells]], config
) -> list[list[tuple[Tensor, Cells]]]:
    """Of one prompt, each video and image in order: parts with their own (crops, 3, H, W) pixels and cells.

    Args:
        picture: (size, several) -> (crops, cells) of an image of the family; see conftest.
    """
    out: list[list[tuple[Tensor, Cells]]] = []
    if config.model_type == "internvl":  # an image is a run of placeholders, as many tiles as fit into it
        runs = [
            len(list(run)) for token, run in groupby(inputs["input_ids"][0].tolist()) if token == config.image_token_id
        ]
        tiles = inputs["pixel_values"].split([run // config.image_seq_length for run in runs])
        return [[(own, [{cell: 1.0} for cell in range(len(own) * config.image_seq_length)])] for own in tiles]
    if config.model_type == "smolvlm":  # every tile has two marks in front, and the last of an image the second is END
        ids, own = inputs["input_ids"][0].tolist(), []
        firsts = [i for i in range(1, len(ids)) if ids[i] == config.image_token_id != ids[i - 1]]
        for tile, first in zip(inputs["pixel_values"][0] if firsts else [], firsts, strict=False):
            own.append(tile)
            if ids[first - 1] == END:
                out.append([(torch.stack(own), [{cell: 1.0} for cell in range(len(own) * patches_of(config))])])
                own = []
        return out
    side = config.vision_config.image_size // config.vision_config.patch_size
    for video in inputs.get("pixel_values_videos", []):
        cells, newline = frame_cells(config.model_type, side)
        out.append([(frame[None], cells) for frame in video] + [(video[:0], [{}])] * newline)
    pixels = inputs.get("pixel_values", [])
    sizes = inputs["image_sizes"].tolist() if "image_sizes" in inputs else [None] * len(pixels)
    for image, size in zip(pixels, sizes, strict=True):
        crops, cells = picture(size, len(pixels) > 1)
        out.append([(image.view(-1, *image.shape[-3:])[:crops], cells)])
    return out


# ---------------------------------------------------------------------------------------------- the whole model
def _heads(x: Tensor, heads: int) -> Tensor:
    return x.view(x.shape[0], heads, -1).transpose(0, 1)  # (H, N, d)


def _rotate(x: Tensor, position: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    frequency = theta ** (-torch.arange(half, dtype=torch.float32) / half)
    angle = position.float()[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def encode(model, pixels: Tensor, plan: dict[int, int], rule: str) -> tuple[Tensor, list[int], list[float]]:
    """(M, C) features of one image in raster order, not yet projected, the patches in whose places they stand, and
    their sizes."""
    vision = model.config.vision_config
    if vision.model_type in ("internvl_vision", "smolvlm_vision"):
        return encode_cells(model, pixels, plan, rule)
    tower = model.model.vision_tower
    cls = int(vision.model_type == "clip_vision_model")
    x = tower.embeddings(pixels[None])[0]
    x = tower.pre_layrnorm(x) if cls else x
    anchor, sizes = list(range(len(x))), [1.0] * len(x)
    depth = vision.num_hidden_layers - (1 if model.config.vision_feature_layer == -2 else 0)
    for index, layer in enumerate(tower.encoder.layers[:depth]):
        attention, normed, heads = layer.self_attn, layer.layer_norm1(x), vision.num_attention_heads
        query, key, value = (_heads(p(normed), heads) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        logits = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5
        if rule == "tome":
            logits = logits + torch.tensor(sizes, dtype=x.dtype).log()
        weights = logits.softmax(-1)
        x = x + attention.out_proj((weights @ value).transpose(0, 1).flatten(1))
        if index in plan:
            keep = plan[index] + cls
            if rule == "tome":
                matrix = tome_matrix(key.mean(0), sizes, keep, cls)
            else:
                matrix = illava_matrix(weights.mean((0, 1)).tolist(), keep, cls)
            anchor = _anchors(matrix, anchor, rule)
            x, sizes = matrix.to(x.dtype) @ x, ((matrix > 0).double() @ torch.tensor(sizes).double()).tolist()
        x = x + layer.mlp(layer.layer_norm2(x))
    order = sorted(range(cls, len(x)), key=lambda m: anchor[m])
    return x[order], [anchor[m] - cls for m in order], [sizes[m] for m in order]


def encode_cells(model, pixels: Tensor, plan: dict[int, int], rule: str) -> tuple[Tensor, list[int], list[float]]:
    """The same of one tile of InternVL or SmolVLM, in cells of 2 x 2 patches: CLS apart, four patches for each cell."""
    vision, cls = model.config.vision_config, int(model.config.model_type == "internvl")
    tower, heads = model.model.vision_tower if cls else model.model.vision_model, vision.num_attention_heads
    edge = vision.image_size[0] // vision.patch_size[0] if cls else vision.image_size // vision.patch_size
    seen = () if cls else (torch.ones(1, edge, edge, dtype=torch.bool),)
    embedded = tower.embeddings(pixels[None], *seen)[0]
    grid = embedded[cls:].view(edge, edge, -1)
    corners = [(row, column) for row in range(0, edge, 2) for column in range(0, edge, 2)]
    x = torch.cat([embedded[:cls], *(grid[r : r + 2, c : c + 2].flatten(0, 1) for r, c in corners)])  # cell by cell
    anchor, sizes = list(range(cls + len(corners))), [1.0] * (cls + len(corners))

    def per_cell(values: Tensor) -> Tensor:
        return torch.cat([values[:cls], values[cls:].view(-1, 4, *values.shape[1:]).mean(1)])

    for index, layer in enumerate(tower.encoder.layer if cls else tower.encoder.layers):
        attention = layer.attention if cls else layer.self_attn
        normed = layer.layernorm_before(x) if cls else layer.layer_norm1(x)
        query, key, value = (_heads(p(normed), heads) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        logits = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5
        if rule == "tome":
            logits = logits + torch.tensor(sizes[:cls] + [size for size in sizes[cls:] for _ in range(4)]).log()
        weights = logits.softmax(-1)
        attended = (weights @ value).transpose(0, 1).flatten(1)
        x = x + (layer.lambda_1 * attention.projection_layer(attended) if cls else attention.out_proj(attended))
        if index in plan:
            if rule == "tome":
                matrix = tome_matrix(per_cell(key.mean(0)), sizes, plan[index] + cls, cls)
            else:
                matrix = illava_matrix(per_cell(weights.mean((0, 1))).tolist(), plan[index] + cls, cls)
            anchor = _anchors(matrix, anchor, rule)
            cells = matrix[cls:, cls:].to(x.dtype) @ x[cls:].view(-1, 4 * x.shape[1])
            x, sizes = (
                torch.cat([x[:cls], cells.view(-1, x.shape[1])]),
                ((matrix > 0).double() @ torch.tensor(sizes).double()).tolist(),
            )
        x = x + (layer.lambda_2 * layer.mlp(layer.layernorm_after(x)) if cls else layer.mlp(layer.layer_norm2(x)))
    cells = (tower.layernorm(x)[1:] if cls else tower.post_layernorm(x)).view(-1, 4 * x.shape[1])
    order = sorted(range(len(cells)), key=lambda m: anchor[m + cls])
    return cells[order], [anchor[m + cls] - cls for m in order], [sizes[m + cls] for m in order]


def _anchors(matrix: Tensor, anchor: list[int], rule: str) -> list[int]:
    """The place of each slot: its own token. A merged slot of ToMe stands at its B token, of iLLaVA at its target."""
    out = []
    for row in matrix:
        members = torch.nonzero(row)[:, 0].tolist()
        if len(members) > 1:
            # ToMe: the odd index; iLLaVA: the target, which has the smallest weight.
            members = [m for m in members if m % 2] if rule == "tome" else [min(members, key=lambda m: float(row[m]))]
        out.append(anchor[members[0]])
    return out


def patches_of(config) -> int:
    """Patches of one crop; of a tile of InternVL or SmolVLM, cells."""
    if config.model_type == "internvl":
        return config.image_seq_length
    side = config.vision_config.image_size // config.vision_config.patch_size
    return (side // getattr(config, "scale_factor", 1)) ** 2


def parts_of(model) -> tuple[Any, Any]:
    """(projector, language model)"""
    if model.config.model_type == "smolvlm":
        return model.model.connector.modality_projection, model.model.text_model
    return model.model.multi_modal_projector, model.model.language_model


def placeholders(
    model, parts: list[tuple[Tensor, Cells]], plan: dict[int, int], rule: str
) -> list[tuple[Tensor | None, float, bool]]:
    """(features, size, is it a marker) of every placeholder of one image or video; no features where it is gone. The
    size is the mean over its patches, and only right where no placeholder shares a patch with another."""
    per_crop, project = patches_of(model.config), parts_of(model)[0]
    out: list[tuple[Tensor | None, float, bool]] = []
    for crops, cells in parts:
        late = model.config.model_type == "llava_next_video" and any(len(cell) > 1 for cell in cells)
        features: dict[int, Tensor] = {}
        size: dict[int, float] = {}
        for number, crop in enumerate(crops):
            encoded, places, sizes = encode(model, crop, plan, rule)
            encoded = encoded if late else project(encoded)
            features |= {number * per_crop + place: x for place, x in zip(places, encoded, strict=True)}
            size |= {number * per_crop + place: own for place, own in zip(places, sizes, strict=True)}
        kept = min(plan.values(), default=per_crop) / per_crop
        for cell in surviving_cells(cells, set(features), kept):
            if cell == {}:
                out.append((model.model.image_newline, 1.0, True))
            else:
                x = sum(weight * features[patch] for patch, weight in cell.items()) if cell else None
                own = sum(weight * size[patch] for patch, weight in (cell or {}).items())
                out.append((project(x) if late and cell else x, own, False))
    return out


@torch.no_grad()
def logits(
    model,
    ids: list[int],
    images: Tensor | list[list[tuple[Tensor, Cells]]],
    *,
    prompt: int,
    image_token: int,
    encoder: dict[int, int],
    llm: dict[int, int | float],
    rule: str,
    packed: bool = False,
    weighs: bool = False,
) -> Tensor:
    """(V,) logits after the last token of `ids`, of which the first `prompt` are the prompt.

    Args:
        images: pixels of images whose patches are their tokens, or `visuals`.
        llm: counts or fractions kept, of every image or video on its own.
        weighs: whether a token that stands for s of them counts s times in the LLM.
    """
    text, language_model = model.config.text_config, parts_of(model)[1]
    patches = patches_of(model.config)
    if isinstance(images, Tensor):
        images = [[(image[None], [{patch: 1.0} for patch in range(patches)])] for image in images]
    waiting = [
        (*cell, number) for number, parts in enumerate(images) for cell in placeholders(model, parts, encoder, rule)
    ]
    tokens = {image_token, getattr(model.config, "video_token_id", image_token)}
    x, position, image, size = [], [], [], []  # image: which one a visual token belongs to, -1 for text and markers
    for slot, token in enumerate(ids):
        if token in tokens and slot < prompt:
            features, own, marker, number = waiting.pop(0)
            if features is None:
                continue
            x.append(features)
            size.append(own)
            image.append(-1 if marker else number)
        else:
            x.append(language_model.embed_tokens.weight[token])
            size.append(1.0)
            image.append(-1)
        position.append(slot)
    assert not waiting
    x, position, image, size = torch.stack(x), torch.tensor(position), torch.tensor(image), torch.tensor(size)
    last = int((position < prompt).sum()) - 1
    heads, groups = text.num_attention_heads, text.num_key_value_heads
    theta = text.rope_parameters["rope_theta"]
    row = None

    def attend(layer, x: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """(H, S, S) causal attention of one layer on the states that enter it, (H, S, d) its values."""
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        query = _rotate(_heads(attention.q_proj(normed), heads), position, theta)
        key = _rotate(_heads(attention.k_proj(normed), groups), position, theta).repeat_interleave(heads // groups, 0)
        value = _heads(attention.v_proj(normed), groups).repeat_interleave(heads // groups, 0)
        score = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5
        score = score + size.log() if weighs else score
        return score.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf).softmax(-1), value

    if packed:
        position = torch.arange(len(x))
    for index, layer in enumerate(language_model.layers):
        if index in llm:
            keep, before = image < 0, x
            if rule == "pyramiddrop":
                row = attend(layer, x, position)[0][:, last].mean(0)
            for number in range(len(images)):
                at = torch.nonzero(image == number)[:, 0]
                score, count = row[at].tolist(), llm[index]
                count = len(at) - round(len(at) * (1 - count)) if isinstance(count, float) else count
                matrix = illava_matrix(score, count) if rule == "illava" else fastv_matrix(score, count)
                own = torch.tensor(_anchors(matrix, at.tolist(), "illava"))
                x = x.index_copy(0, own, matrix.to(x.dtype) @ before[at])
                size = size.index_copy(0, own, (matrix > 0).to(size.dtype) @ size[at])
                keep[own] = True
            x, position, image, size = x[keep], position[keep], image[keep], size[keep]
            last = int(torch.nonzero(keep)[:, 0].tolist().index(last))
            if packed:
                position = torch.arange(len(x))
        weights, value = attend(layer, x, position)
        row = weights[:, last].mean(0)
        x = x + layer.self_attn.o_proj((weights @ value).transpose(0, 1).flatten(1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(language_model.norm(x[-1]))
