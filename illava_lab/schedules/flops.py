"""FLOPs of a prefill from shapes alone: a closed form for the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Stage
from illava_lab.models.anatomy import Anatomy
from illava_lab.models.families import describe
from illava_lab.models.layout import Layout
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.prompt_shape import ImageShape, PromptShape, prompt_shape
from illava_lab.schedules.strategy_flops import linears, reduction_flops
from illava_lab.sites.packed import window_of_cells
from illava_lab.trace.trace import Trace


def prefill_flops(
    model: nn.Module,
    strategy: Strategy | None = None,
    schedule: Plan | None = None,
    *,
    text_tokens: int,
    layouts: Sequence[Layout] | None = None,
    trace: Trace | None = None,
) -> float:
    """Floating-point operations of the prefill of one prompt; a multiply-add counts two.

    A token costs ``2 x weights`` in every linear layer, and n tokens cost ``4 n^2 x (heads x head size)`` in an
    attention, masked places included. That is what torch's counter finds for the plain kernel
    (`measure.prefill_flops`). What the strategy computes is counted by letting it reduce random tokens of the same
    shapes. Which tokens survive is not known without a run: every window, and padding that is cut off, is expected to
    lose the same share as the rest of a picture. The `trace` of a run tells.

    Args:
        model: only shapes are read; it may be on the meta device.
        text_tokens: tokens of the prompt beside the placeholders of images and videos.
        layouts: what the prompt shows (`measure.layouts`); None for one image of as many tokens as a row of the encoder
            has, a typical one where pictures come in any size.
        trace: of a run on the first prompt under this strategy and schedule, in place of `layouts`.
    """
    parts = flops_by_layer(model, schedule, strategy, text_tokens=text_tokens, layouts=layouts, trace=trace)
    return sum(sum(part) for part in parts.values())


def flops_by_layer(
    model: nn.Module,
    schedule: Plan | None = None,
    strategy: Strategy | None = None,
    *,
    text_tokens: int,
    layouts: Sequence[Layout] | None = None,
    trace: Trace | None = None,
) -> dict[str, list[float]]:
    """Where the FLOPs of a prefill go: "patches" (their embedding), "encoder", "pooling" (its head), "projector" (with
    those of layers in between), "llm" and "head".

    "encoder" and "llm" have an entry for each layer, the others one. What the strategy computes is in the layer that
    reduces; without one it is left out. Arguments as in `prefill_flops`.
    """
    prompt = prompt_shape(describe(model), schedule, text_tokens, layouts, trace)
    out = _by_layer(model, prompt)
    if strategy is not None:
        stages: tuple[Stage, ...] = ("encoder", "llm")
        for stage in stages:
            plan, looks = prompt.plan[stage], strategy.looks(prompt.anatomy.encoder_depth) if stage == "encoder" else []
            for layer in sorted({*plan, *(layer for layer in looks if layer <= max(plan, default=-1))}):
                out[stage][layer] += reduction_flops(model, prompt, strategy, stage, layer)
    return out


def _by_layer(model: Any, prompt: PromptShape) -> dict[str, list[float]]:
    anatomy = prompt.anatomy
    tower, patches = anatomy.tower, anatomy.patches_of_token
    layers: Any = anatomy.llm_layers
    out: dict[str, list[float]] = {
        "patches": [0.0],
        "encoder": [0.0] * len(anatomy.encoder_layers),
        "pooling": [0.0],
        "projector": [0.0],
        "llm": [],
        "head": [_linear(model.lm_head)],  # the logits of the last position
    }
    joins = getattr(tower, "downsample", None)  # a convolution that makes one token of each cell (GLM-4.1V)
    convolutions = [m for m in tower.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)) and m is not joins]
    embedding = sum(2.0 * m.weight.numel() for m in convolutions)
    joining = 0.0 if joins is None else 2.0 * joins.weight.numel()
    for visual in prompt.visuals:
        rows, left = visual.rows, visual.encoder[-1]
        out["patches"][0] += embedding * rows * visual.encoder[0] * patches
        for index, layer in enumerate(anatomy.encoder_layers):
            attention, mlp = (getattr(layer, name) for name in (anatomy.layer_parts.attention, anatomy.layer_parts.mlp))
            before, after = (n * patches + anatomy.cls_tokens for n in visual.encoder[index : index + 2])
            pairs = _pairs(anatomy, index, visual)
            out["encoder"][index] += rows * (_attention(attention, before, pairs) + _linear(mlp) * after)
        out["pooling"][0] += rows * sum(_pooling_head(m, left) for m in tower.modules() if hasattr(m, "probe"))
        projected = rows * left if visual.pooled is None else visual.pooled
        out["projector"][0] += projected * (joining + _linear(anatomy.projector))
        for index, projector in anatomy.deepstack.items():
            out["projector"][0] += rows * visual.encoder[index + 1] * _linear(projector)
    for index, layer in enumerate(layers):
        length = prompt.length(index)
        if index in anatomy.linear:
            mixing = _recurrence(layer.linear_attn, length)
        else:
            mixing = _attention(layer.self_attn, length, length**2)
        out["llm"].append(mixing + (_linear(layer.mlp) + _experts(layer.mlp)) * length)
    return out


def _pairs(anatomy: Anatomy, index: int, visual: ImageShape) -> float:
    """Pairs of a query and a key in the attention of an encoder layer, for one row.

    Within windows, where survivors are not known, two of them share one as often as any two cells did.
    """
    left, patches = visual.encoder[index], anatomy.patches_of_token
    window = anatomy.cells.window_at(index) if anatomy.cells else None
    if window is None:
        return float(left * patches + anatomy.cls_tokens) ** 2
    windows = window_of_cells(visual.grid, window, torch.device("cpu")).flatten()
    if visual.places is not None:
        pairs = sum(int(windows[place].bincount().square().sum()) for place in visual.places(index))
        return pairs / visual.rows * patches**2
    whole, together = len(windows), int(windows.bincount().square().sum())
    chance = (together - whole) / max(1, whole * (whole - 1))
    return (left + left * (left - 1) * chance) * patches**2


def _linear(module: nn.Module) -> float:
    """FLOPs of the linear layers for one token."""
    return sum(2.0 * m.in_features * m.out_features for m in linears(module))


def _attention(module: nn.Module, length: int, pairs: float) -> float:
    """FLOPs of one attention with its projections, the last of which takes all heads side by side."""
    return _linear(module) * length + 4.0 * pairs * linears(module)[-1].in_features


CHUNK = 64  # tokens of which a gated delta rule sees the pairs


def _recurrence(module: Any, length: int) -> float:
    """FLOPs of linear attention (a gated delta rule in chunks) with its projections and its convolution.

    In a chunk of c tokens, a head of keys d and values e wide compares keys with keys and with queries, and applies the
    latter; then queries and keys read its state, and it is written. The triangular system in between is left out, as
    by torch's counter.
    """
    heads, key, value = module.num_v_heads, module.head_k_dim, module.head_v_dim
    chunk = CHUNK**2 * (4.0 * key + 2.0 * value) + 6.0 * CHUNK * key * value
    taps: int = module.conv1d.kernel_size[0]
    convolution = 2.0 * int(module.conv1d.weight.numel()) * (length + taps - 1)
    return _linear(module) * length + convolution + float(-(-length // CHUNK) * heads * chunk)


def _experts(mlp: Any) -> float:
    """FLOPs for one token of the experts that are chosen, which are no linear layers, and of the choice."""
    if not hasattr(mlp, "experts"):
        return 0.0
    weights: int = sum(parameter.numel() for parameter in mlp.experts.parameters())
    chosen: float = mlp.gate.top_k / mlp.gate.num_experts
    return 2.0 * int(mlp.gate.weight.numel()) + 2.0 * weights * chosen


def _pooling_head(module: Any, count: int) -> float:
    """FLOPs of SigLIP's attention pooling, which runs although no LLaVA uses it: one query, `count` keys."""
    width: int = module.attention.embed_dim
    return 4.0 * width**2 * (count + 1) + 4.0 * width * count + _linear(module.mlp)
