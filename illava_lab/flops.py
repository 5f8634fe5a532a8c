"""FLOPs of a prefill from shapes alone: a closed form for the model, a count on random tokens for the strategy."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from illava_lab.attention import AttentionSite
from illava_lab.errors import LabError
from illava_lab.families import Anatomy, describe
from illava_lab.schedule import Schedule
from illava_lab.shuffled_encoder_stage import ShuffledSite, cell_places
from illava_lab.strategy import Strategy, Tokens


def prefill_flops(
    model: nn.Module, strategy: Strategy | None = None, schedule: Schedule | None = None, *, text_tokens: int
) -> float:
    """Floating-point operations of the prefill of a prompt with one image (one tile); a multiply-add counts two.

    A token costs ``2 x weights`` in every linear layer, and n tokens cost ``4 n^2 x (heads x head size)`` in an attention,
    masked places included. That is what torch's counter finds for the plain kernel (`measure.prefill_flops`). What the
    strategy computes is counted by letting it reduce random tokens of the same shapes.

    Args:
        model: only shapes are read; it may be on the meta device.
        text_tokens: tokens of the prompt beside the visual ones.

    Raises:
        LabError: a model that takes images of any size.
    """
    anatomy, schedule = describe(model), schedule or Schedule()
    total = sum(sum(part) for part in flops_by_layer(model, schedule, text_tokens=text_tokens).values())
    if strategy is not None:
        tokens = schedule.tokens(anatomy)
        total += sum(_reduction(model, anatomy, strategy, tokens, stage, layer, text_tokens)
                     for stage in ("encoder", "llm") for layer in schedule.plan(stage))  # fmt: skip
    return total


def flops_by_layer(model: nn.Module, schedule: Schedule | None = None, *, text_tokens: int) -> dict[str, list[float]]:
    """Where the FLOPs of a prefill go: "patches" (their embedding), "encoder", "pooling" (its head), "projector",
    "llm" and "head".

    "encoder" and "llm" have an entry for each layer, the others one. What a strategy computes is left out. Arguments as in
    `prefill_flops`.

    Raises:
        LabError: a model that takes images of any size.
    """
    anatomy, schedule = describe(model), schedule or Schedule()
    if anatomy.cells is not None:
        raise LabError("FLOPs are not known for models that take images of any size; give the budget as keep")
    tokens = schedule.tokens(anatomy)
    config, cls_tokens = model.config, anatomy.cls_tokens
    per_token = anatomy.shuffle**2  # patches
    seen = tokens["image"][-1] * per_token
    patches = sum(2.0 * m.weight.numel() * seen for m in anatomy.tower.modules() if isinstance(m, nn.Conv2d))

    width = config.vision_config.hidden_size
    counts = tokens["encoder"] + [tokens["encoder"][-1]] * (len(anatomy.encoder_layers) - anatomy.encoder_depth)
    encoder = []
    for layer, before, after in zip(anatomy.encoder_layers, counts, counts[1:], strict=False):
        attention, _, mlp = (getattr(layer, name) for name in anatomy.layer_parts)
        before, after = (count * per_token + cls_tokens for count in (before, after))
        encoder.append(_attention(attention, before, width) + _linear(mlp) * after)
    pooling = sum(_pooling_head(m, counts[-1]) for m in anatomy.tower.modules() if hasattr(m, "probe"))

    text, llm = config.text_config, []
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    for layer, visual in zip(anatomy.llm_layers, tokens["llm"], strict=False):
        length = visual + text_tokens
        llm.append(_attention(layer.self_attn, length, width) + _linear(layer.mlp) * length)
    return {
        "patches": [patches],
        "encoder": encoder,
        "pooling": [pooling],
        "projector": [_linear(anatomy.projector) * counts[-1]],
        "llm": llm,
        "head": [_linear(model.lm_head)],  # the logits of the last position
    }


def _linear(module: nn.Module) -> float:
    """FLOPs of the linear layers for one token."""
    return sum(2.0 * m.in_features * m.out_features for m in module.modules() if isinstance(m, nn.Linear))


def _attention(module: nn.Module, length: int, width: int) -> float:
    """FLOPs of one attention with its projections."""
    return _linear(module) * length + 4.0 * length**2 * width


def _pooling_head(module: nn.Module, count: int) -> float:
    """FLOPs of SigLIP's attention pooling, which transformers runs although no LLaVA uses it: one query, `count` keys."""
    width = module.attention.embed_dim
    return 4.0 * width**2 * (count + 1) + 4.0 * width * count + _linear(module.mlp)


def _reduction(
    model: nn.Module, anatomy: Anatomy, strategy: Strategy, tokens: dict[Any, list[int]], stage: str, layer: int, text: int
) -> int:
    """FLOPs of scoring and merging at one layer, counted on random tokens."""
    config = model.config.vision_config if stage == "encoder" else model.config.text_config
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    if stage == "encoder":
        first, extra = 0, anatomy.cls_tokens
        before, after = tokens[stage][layer], tokens[stage][layer + 1]
    else:  # text before and after the image, as in any prompt
        first, extra = text // 2, 0
        before, after = tokens[stage][layer - 1], tokens[stage][layer]
    count = before + extra
    shuffled = stage == "encoder" and anatomy.shuffle > 1
    cells = cell_places((1, before), anatomy.shuffle, torch.device("cpu"))[None] if shuffled else None
    length = int(cells.max()) + 1 if shuffled else count if stage == "encoder" else count + text
    draw = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    sequence = random(1, length, config.hidden_size)
    visual = torch.arange(first, first + count)[None]
    site = AttentionSite(random(1, heads, length, width), random(1, groups, length, width), width**-0.5, hidden=sequence)
    if stage == "encoder":
        site.has_cls = bool(extra)
    else:
        site.causal, site.visual, site.last, site.norm = True, visual, torch.tensor([length - 1]), nn.Identity()
        start = tokens["llm"][0]
        places = torch.arange(start + text)[None]
        site.text = torch.arange(first + count, length)[None]
        site.entry = lambda: (
            random(1, start + text, config.hidden_size), places[:, first : first + start], places[:, first + start :]
        )  # fmt: skip

        def ahead() -> tuple[torch.Tensor, torch.Tensor]:
            weights = torch.empty(config.hidden_size, (heads + 2 * groups) * width, device="meta")
            torch.empty(1, length, config.hidden_size, device="meta") @ weights  # counted, not computed
            return site.query, site.key

        site.ahead = ahead
    hidden = sequence[:, cells[0]].mean(2) if shuffled else sequence[:, visual[0]]
    reduced = Tokens(
        stage,
        hidden,
        layer=layer,
        position=torch.arange(-extra, before)[None],
        protected=torch.arange(count)[None] < extra if extra else None,
        grid=anatomy.grid,
        site=ShuffledSite(site, cells) if shuffled else site,
    )
    with FlopCounterMode(display=False) as counter:
        strategy.map(reduced, after + extra).apply(reduced.hidden)
    return counter.get_total_flops()
