"""FLOPs of what a strategy computes, counted by letting it reduce random tokens of the same shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache as memoize
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from illava_lab.method.ask import take_note
from illava_lab.method.modes import within
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Stage, Tokens
from illava_lab.models.anatomy import Anatomy, Cells
from illava_lab.schedules.prompt_shape import PromptShape
from illava_lab.sites.attention import AttentionSite, tokens_at
from illava_lab.sites.cells import ShuffledSite, cell_places
from illava_lab.sites.packed import CellSite, PackedAttention, window_of_cells


def linears(module: nn.Module) -> list[nn.Linear]:
    """The linear layers of a module, in the order in which they were defined."""
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


class _Asked(NamedTuple):
    """What a strategy is given, and how often: `states` (B, N, C) is what its map is applied to."""

    times: int
    tokens: Tokens
    states: Tensor
    keep: int


def reduction_flops(model: nn.Module, prompt: PromptShape, strategy: Strategy, stage: Stage, layer: int) -> float:
    """FLOPs of noting, scoring and merging at one layer, counted on random tokens."""
    tokens_of, total = (_in_encoder if stage == "encoder" else _in_llm), 0.0
    looks = strategy.looks(prompt.anatomy.encoder_depth) if stage == "encoder" else []
    earlier = [take_note(strategy, asked.tokens, None) for asked in tokens_of(model, prompt, layer)] if looks else None
    for i, asked in enumerate(tokens_of(model, prompt, layer)):
        noted = None if earlier is None else earlier[i]
        if stage == "llm" and "image" in strategy.at(stage, layer).media:  # pictures and films are counted alike
            asked.tokens.frames = None
        if noted is not None:
            asked.tokens._statistics["noted"] = noted
        with within(FlopCounterMode(display=False)) as counter:
            if layer in looks:
                take_note(strategy, asked.tokens, noted)
            if layer in prompt.plan[stage]:
                strategy.map(asked.tokens, asked.keep).apply(asked.states)
        total += asked.times * counter.get_total_flops()
    return total


class _Random:
    """Random tensors where the model is, or on the CPU for a model without weights; the same ones for every layer."""

    def __init__(self, model: Any) -> None:
        own: torch.device = model.lm_head.weight.device
        self.device = torch.device("cpu") if own.type == "meta" else own
        self._generator = torch.Generator(self.device).manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=self.device)

    def some(self, count: int, of: int) -> Tensor:
        """(count,) different whole numbers below `of`."""
        return self(of).argsort()[:count]


def _in_encoder(model: nn.Module, prompt: PromptShape, layer: int) -> Iterator[_Asked]:
    """Every row on its own: they cost the same in one batch."""
    anatomy, rows = prompt.anatomy, Counter[tuple[tuple[int, int], int, int]]()
    for visual in prompt.visuals:
        rows[visual.grid, visual.encoder[layer], visual.encoder[layer + 1]] += visual.rows
    attention = getattr(anatomy.encoder_layers[layer], anatomy.layer_parts.attention)
    heads, width = attention.num_heads, linears(attention)[-1].in_features
    for (grid, before, after), times in rows.items():
        random = _Random(model)
        if anatomy.cells is not None:
            yield _cells(anatomy, anatomy.cells, layer, random, grid, before, after, times, heads, width)
            continue
        extra = anatomy.cls_tokens
        sequence = random(1, before * anatomy.patches_of_token + extra, width)
        query, key, value = (random(1, heads, sequence.shape[1], width // heads) for _ in range(3))
        site: Any = AttentionSite(
            query, key, (width // heads) ** -0.5, has_cls=bool(extra), hidden=sequence, value=value
        )
        hidden = states = sequence
        if anatomy.shuffle > 1:
            at = cell_places((1, before), anatomy.shuffle, anatomy.cls_tokens, random.device)[None]
            site, hidden, states = ShuffledSite(site, at), sequence[:, at[0]].mean(2), sequence[:, at[0]].flatten(2)
        position = torch.arange(-extra, before, device=random.device)[None]
        protected = position < 0 if extra else None
        tokens = Tokens("encoder", hidden, layer=layer, position=position, protected=protected, grid=grid, site=site)
        yield _Asked(times, tokens, states, after + extra)


def _cells(
    anatomy: Anatomy, cells: Cells, layer: int, random: _Random, grid: tuple[int, int], before: int, after: int,
    times: int, heads: int, width: int,
) -> _Asked:  # fmt: skip
    """A row of a packed tower: a strategy sees the means over cells, its map is applied to their patches."""
    window, patches = cells.window_at(layer), anatomy.patches_of_token
    whole = grid[0] * grid[1]
    windows = window_of_cells(grid, window or max(grid), random.device).flatten()
    lengths = windows[random.some(before, whole)].bincount()
    bounds = torch.nn.functional.pad(lengths[lengths > 0].cumsum(0), (1, 0)) * patches
    query, key, value = (random(heads, before * patches, width // heads) for _ in range(3))
    rotary = (random(before * patches, width // heads), random(before * patches, width // heads))
    frame = torch.arange(before * patches, device=random.device)[None]
    longest = patches * min(before, window**2 if window else before)  # what the hooks know without asking the device
    attention = PackedAttention(
        [(query, key, value)], rotary, (width // heads) ** -0.5, bounds, [frame], None, patches, longest=longest
    )
    states, at = random(1, before, patches * width), torch.arange(before, device=random.device)[None]
    hidden = states.view(1, before, patches, width).mean(2)
    tokens = Tokens("encoder", hidden, layer=layer, position=at, grid=grid, site=CellSite(attention, at))
    return _Asked(times, tokens, states, after)


def _in_llm(model: Any, prompt: PromptShape, layer: int) -> Iterator[_Asked]:
    """Once for all images that are alike, with half of the text before them, half after."""
    random, length, start = _Random(model), prompt.length_before(layer), prompt.length_before(0)
    attending = layer if layer not in prompt.anatomy.linear else prompt.anatomy.first_attending
    attention: Any = prompt.anatomy.llm_layers[attending].self_attn
    config = model.config.text_config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width: int = linears(attention)[-1].in_features // heads
    projections = sum(m.out_features for m in linears(attention)[:-1])
    query, key = random(1, heads, length, width), random(1, groups, length, width)
    sequence, entered = random(1, length, config.hidden_size), random(1, start, config.hidden_size)

    @memoize  # once for all images
    def ahead() -> tuple[Tensor, Tensor]:
        weights = torch.empty(config.hidden_size, projections, device="meta")
        torch.empty(1, length, config.hidden_size, device="meta") @ weights  # counted, not computed
        return query, key

    alike = Counter((v.before(layer), v.llm[layer], v.entered, v.one_grid, v.rows) for v in prompt.visuals)
    for (before, after, entry, grid, rows), images in alike.items():
        at, text = _around(before, length, prompt.text, random.device)
        places = _around(entry, start, prompt.text, random.device)
        at, places = at.expand(images, -1), (places[0].expand(images, -1), places[1])
        site = AttentionSite(
            query, key, width**-0.5, causal=True, visual=at, prompt=at.new_zeros(images), hidden=sequence, text=text,
            value=key, ahead=ahead, last=torch.tensor([length - 1], device=random.device), norm=nn.Identity(),
            entry=partial(_entry, entered, *places),
        )  # fmt: skip
        hidden, frames = tokens_at(sequence, at, site.prompt), (rows, -(-entry // rows))
        tokens = Tokens("llm", hidden, layer=layer, grid=grid, frames=frames, site=site)
        yield _Asked(1, tokens, tokens.hidden, after)


def _entry(sequence: Tensor, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return sequence, visual, text


def _around(count: int, length: int, text: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(1, count) places of an image in a prompt and (1, T) of the text after it, which is half of all text."""
    after = text - text // 2
    first = max(0, length - after - count)
    places = torch.arange(length, device=device)[None]
    return places[:, first : first + count], places[:, length - after :]
