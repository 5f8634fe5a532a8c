"""Slow, plain re-statements of what the lab does, written from the formulas and sharing none of its code.

`logits` runs a whole LLaVA by hand on one prompt: every attention as a full matrix, every reduction as a dense matrix
built by a naive rule, no cache, no hooks. Only the weights of the linear layers and norms are the model's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
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
    cosine = lambda a, b: float(keys[a] @ keys[b] / keys[a].norm() / keys[b].norm())  # noqa: E731
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


def encode(model, pixels: Tensor, plan: dict[int, int], rule: str) -> tuple[Tensor, list[int]]:
    """(M, C) projected features of one image in raster order, and the patches in whose places they stand."""
    tower, vision = model.model.vision_tower, model.config.vision_config
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
    features = model.model.multi_modal_projector(x[order])
    return features, [anchor[m] - cls for m in order]


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


@torch.no_grad()
def logits(
    model,
    ids: list[int],
    images: Tensor,
    *,
    prompt: int,
    image_token: int,
    encoder: dict[int, int],
    llm: dict[int, int],
    rule: str,
    packed: bool = False,
) -> Tensor:
    """(V,) logits after the last token of `ids`, of which the first `prompt` are the prompt."""
    text = model.config.text_config
    features, places = zip(*[encode(model, image, encoder, rule) for image in images], strict=True)
    patches = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    x, position, visual = [], [], []
    seen = 0
    for slot, token in enumerate(ids):
        if token == image_token and slot < prompt:
            image, patch = divmod(seen, patches)
            seen += 1
            if patch not in places[image]:
                continue
            x.append(features[image][places[image].index(patch)])
        else:
            x.append(model.model.language_model.embed_tokens.weight[token])
        position.append(slot)
        visual.append(token == image_token and slot < prompt)
    x, position, visual = torch.stack(x), torch.tensor(position), torch.tensor(visual)
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
        return score.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -torch.inf).softmax(-1), value

    if packed:
        position = torch.arange(len(x))
    for index, layer in enumerate(model.model.language_model.layers):
        if index in llm:
            at = torch.nonzero(visual)[:, 0]
            if rule == "pyramiddrop":
                row = attend(layer, x, position)[0][:, last].mean(0)
            score = row[at].tolist()
            matrix = illava_matrix(score, llm[index]) if rule == "illava" else fastv_matrix(score, llm[index])
            own = torch.tensor(_anchors(matrix, at.tolist(), "illava"))
            x = x.index_copy(0, own, matrix.to(x.dtype) @ x[at])
            keep = ~visual
            keep[own] = True
            x, position, visual = x[keep], position[keep], visual[keep]
            last = int(torch.nonzero(keep)[:, 0].tolist().index(last))
            if packed:
                position = torch.arange(len(x))
        weights, value = attend(layer, x, position)
        row = weights[:, last].mean(0)
        x = x + layer.self_attn.o_proj((weights @ value).transpose(0, 1).flatten(1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.language_model.norm(x[-1]))
