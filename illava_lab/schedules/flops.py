"""FLOPs of a prefill from shapes alone: a closed form for the model, a count on random tokens for the strategy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache as memoize
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from illava_lab.hooks.towers.cells import ShuffledSite, cell_places
from illava_lab.hooks.towers.packed import CellSite, PackedAttention, window_of_cells
from illava_lab.method.strategy import Stage, Strategy, Tokens
from illava_lab.models.families import Anatomy, describe
from illava_lab.models.layout import Layout
from illava_lab.schedules.schedule import Schedule
from illava_lab.sites.attention import AttentionSite, tokens_at
from illava_lab.trace.trace import Trace


def prefill_flops(
    model: nn.Module,
    strategy: Strategy | None = None,
    schedule: Schedule | None = None,
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
    prompt = _prompt(describe(model), schedule, text_tokens, layouts, trace)
    total = sum(sum(part) for part in _by_layer(model, prompt).values())
    if strategy is not None:
        stages: tuple[Stage, ...] = ("encoder", "llm")
        for stage in stages:
            total += sum(_reduction(model, prompt, strategy, stage, layer) for layer in prompt.plan[stage])
    return total


def flops_by_layer(
    model: nn.Module,
    schedule: Schedule | None = None,
    *,
    text_tokens: int,
    layouts: Sequence[Layout] | None = None,
) -> dict[str, list[float]]:
    """Where the FLOPs of a prefill go: "patches" (their embedding), "encoder", "pooling" (its head), "projector" (with
    those of layers in between), "llm" and "head".

    "encoder" and "llm" have an entry for each layer, the others one. What a strategy computes is left out. Arguments
    as in `prefill_flops`.
    """
    return _by_layer(model, _prompt(describe(model), schedule, text_tokens, layouts))


# ---------------------------------------------------------------------------------------------- what a prompt holds
class _Visual(NamedTuple):
    """One image or video.

    Attributes:
        rows: crops, frames or temporal slices, each an attention of its own in the encoder.
        grid: (height, width) of a row, in what a schedule counts: patches, or cells in a packed tower.
        encoder: what is left of a row on entering each encoder layer; one entry more, for what leaves the last.
        llm: visual tokens in each layer of the LLM.
        one_grid: `grid` where the whole of it is one in raster order, else None.
        markers: placeholders that are no visual tokens.
        places: gives what each row has left in front of an encoder layer (`Trace.places`), or None if that is not known.
    """

    rows: int
    grid: tuple[int, int]
    encoder: list[int]
    llm: list[int]
    one_grid: tuple[int, int] | None
    markers: int
    places: Callable[[int], list[Tensor]] | None


@dataclass(frozen=True, eq=False)
class _Prompt:
    """All images and videos of a prompt under a schedule, and the text."""

    anatomy: Anatomy
    plan: dict[Stage, dict]
    visuals: list[_Visual]
    text: int

    def length(self, layer: int) -> int:
        """Tokens in a layer of the LLM."""
        return self.text + sum(visual.llm[layer] + visual.markers for visual in self.visuals)


def _prompt(
    anatomy: Anatomy,
    schedule: Schedule | None,
    text_tokens: int,
    layouts: Sequence[Layout] | None,
    trace: Trace | None = None,
) -> _Prompt:
    schedule, visuals = schedule or Schedule(), []
    if trace is not None:
        layouts = [trace.layout(image) for image in range(trace.images_per_row[0])]
    for image, layout in enumerate([None] if layouts is None else layouts):
        tokens = schedule.tokens(anatomy, layout, None if trace is None else trace.entered(image))
        rows, *grid = (1, *anatomy.grid) if layout is None else layout.patches
        one_grid, markers = (anatomy.grid, 0) if layout is None else (layout.grid, layout.slots - layout.tokens)
        encoder = [count // rows for count in tokens["encoder"]]
        # Where the projector takes an earlier layer, the later ones run for nothing.
        encoder += encoder[-1:] * (len(anatomy.encoder_layers) - anatomy.encoder_depth)
        places = None if trace is None else partial(trace.places, image)
        visuals.append(_Visual(rows, tuple(grid), encoder, tokens["llm"], one_grid, markers, places))
    return _Prompt(anatomy, {stage: schedule.plan(stage) for stage in ("encoder", "llm")}, visuals, text_tokens)


# ---------------------------------------------------------------------------------------------- the closed form
def _by_layer(model: nn.Module, prompt: _Prompt) -> dict[str, list[float]]:
    anatomy = prompt.anatomy
    tower, patches = anatomy.tower, anatomy.patches_of_token
    out: dict[str, list[float]] = {
        "patches": [0.0],
        "encoder": [0.0] * len(anatomy.encoder_layers),
        "pooling": [0.0],
        "projector": [0.0],
        "llm": [],
        "head": [_linear(model.lm_head)],  # the logits of the last position
    }
    embedding = sum(2.0 * m.weight.numel() for m in tower.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    for visual in prompt.visuals:
        rows, left = visual.rows, visual.encoder[-1]
        out["patches"][0] += embedding * rows * visual.encoder[0] * patches
        for index, layer in enumerate(anatomy.encoder_layers):
            attention, mlp = (getattr(layer, name) for name in (anatomy.layer_parts.attention, anatomy.layer_parts.mlp))
            before, after = (n * patches + anatomy.cls_tokens for n in visual.encoder[index : index + 2])
            pairs = _pairs(anatomy, index, visual)
            out["encoder"][index] += rows * (_attention(attention, before, pairs) + _linear(mlp) * after)
        out["pooling"][0] += rows * sum(_pooling_head(m, left) for m in tower.modules() if hasattr(m, "probe"))
        out["projector"][0] += rows * left * _linear(anatomy.projector)
        for index, projector in anatomy.deepstack.items():
            out["projector"][0] += rows * visual.encoder[index + 1] * _linear(projector)
    for index, layer in enumerate(anatomy.llm_layers):
        length = prompt.length(index)
        out["llm"].append(_attention(layer.self_attn, length, length**2) + _linear(layer.mlp) * length)
    return out


def _pairs(anatomy: Anatomy, index: int, visual: _Visual) -> float:
    """Pairs of a query and a key in the attention of an encoder layer, for one row.

    Within windows, where survivors are not known, two of them share one as often as any two cells did.
    """
    left, patches = visual.encoder[index], anatomy.patches_of_token
    window = anatomy.cells.window_at(index) if anatomy.cells else None
    if window is None:
        return float(left * patches + anatomy.cls_tokens) ** 2
    windows = window_of_cells(visual.grid, window, "cpu").flatten()
    if visual.places is not None:
        pairs = sum(int(windows[place].bincount().square().sum()) for place in visual.places(index))
        return pairs / visual.rows * patches**2
    whole, together = len(windows), int(windows.bincount().square().sum())
    chance = (together - whole) / max(1, whole * (whole - 1))
    return (left + left * (left - 1) * chance) * patches**2


def _linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def _linear(module: nn.Module) -> float:
    """FLOPs of the linear layers for one token."""
    return sum(2.0 * m.in_features * m.out_features for m in _linears(module))


def _attention(module: nn.Module, length: int, pairs: float) -> float:
    """FLOPs of one attention with its projections, the last of which takes all heads side by side."""
    return _linear(module) * length + 4.0 * pairs * _linears(module)[-1].in_features


def _pooling_head(module: nn.Module, count: int) -> float:
    """FLOPs of SigLIP's attention pooling, which transformers runs although no LLaVA uses it: one query, `count` keys."""
    width = module.attention.embed_dim
    return 4.0 * width**2 * (count + 1) + 4.0 * width * count + _linear(module.mlp)


# ---------------------------------------------------------------------------------------------- the strategy
class _Asked(NamedTuple):
    """What a strategy is given, and how often: `states` (B, N, C) is what its map is applied to."""

    times: int
    tokens: Tokens
    states: Tensor
    keep: int


def _reduction(model: nn.Module, prompt: _Prompt, strategy: Strategy, stage: Stage, layer: int) -> float:
    """FLOPs of scoring and merging at one layer, counted on random tokens."""
    total = 0.0
    for asked in (_in_encoder if stage == "encoder" else _in_llm)(model, prompt, layer):
        with FlopCounterMode(display=False) as counter:
            strategy.map(asked.tokens, asked.keep).apply(asked.states)
        total += asked.times * counter.get_total_flops()
    return total


class _Random:
    """Random tensors where the model is, or on the CPU for a model without weights; the same ones for every layer."""

    def __init__(self, model: nn.Module) -> None:
        own = model.lm_head.weight.device
        self.device = torch.device("cpu") if own.type == "meta" else own
        self._generator = torch.Generator(self.device).manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._generator, device=self.device)

    def some(self, count: int, of: int) -> Tensor:
        """(count,) different whole numbers below `of`."""
        return self(of).argsort()[:count]


def _in_encoder(model: nn.Module, prompt: _Prompt, layer: int) -> Iterator[_Asked]:
    """Every row on its own: they cost the same in one batch."""
    anatomy, rows = prompt.anatomy, Counter[tuple[tuple[int, int], int, int]]()
    for visual in prompt.visuals:
        rows[visual.grid, visual.encoder[layer], visual.encoder[layer + 1]] += visual.rows
    attention = getattr(anatomy.encoder_layers[layer], anatomy.layer_parts.attention)
    heads, width = attention.num_heads, _linears(attention)[-1].in_features
    for (grid, before, after), times in rows.items():
        random = _Random(model)
        if anatomy.cells is not None:
            yield _cells(anatomy, layer, random, grid, before, after, times, heads, width)
            continue
        extra = anatomy.cls_tokens
        sequence = random(1, before * anatomy.patches_of_token + extra, width)
        query, key = (random(1, heads, sequence.shape[1], width // heads) for _ in range(2))
        site: Any = AttentionSite(query, key, (width // heads) ** -0.5, has_cls=bool(extra), hidden=sequence)
        hidden = states = sequence
        if anatomy.shuffle > 1:
            at = cell_places((1, before), anatomy.shuffle, random.device)[None]
            site, hidden, states = ShuffledSite(site, at), sequence[:, at[0]].mean(2), sequence[:, at[0]].flatten(2)
        position = torch.arange(-extra, before, device=random.device)[None]
        protected = position < 0 if extra else None
        tokens = Tokens("encoder", hidden, layer=layer, position=position, protected=protected, grid=grid, site=site)
        yield _Asked(times, tokens, states, after + extra)


def _cells(
    anatomy: Anatomy, layer: int, random: _Random, grid: tuple[int, int], before: int, after: int, times: int,
    heads: int, width: int,
) -> _Asked:  # fmt: skip
    """A row of a packed tower: a strategy sees the means over cells, its map is applied to their patches."""
    window, patches = anatomy.cells.window_at(layer), anatomy.patches_of_token
    whole = grid[0] * grid[1]
    windows = window_of_cells(grid, window or max(grid), random.device).flatten()
    lengths = windows[random.some(before, whole)].bincount()
    bounds = torch.nn.functional.pad(lengths[lengths > 0].cumsum(0), (1, 0)) * patches
    query, key = (random(heads, before * patches, width // heads) for _ in range(2))
    rotary = tuple(random(before * patches, width // heads) for _ in range(2))
    frame = torch.arange(before * patches, device=random.device)[None]
    attention = PackedAttention([(query, key)], rotary, (width // heads) ** -0.5, bounds, [frame], None, patches)
    states, at = random(1, before, patches * width), torch.arange(before, device=random.device)[None]
    hidden = states.unflatten(2, (patches, -1)).mean(2)
    tokens = Tokens("encoder", hidden, layer=layer, position=at, grid=grid, site=CellSite(attention, at))
    return _Asked(times, tokens, states, after)


def _in_llm(model: nn.Module, prompt: _Prompt, layer: int) -> Iterator[_Asked]:
    """Once for all images that are alike, with half of the text before them, half after."""
    random, length, start = _Random(model), prompt.length(layer - 1), prompt.length(0)
    attention = prompt.anatomy.llm_layers[layer].self_attn
    config = model.config.text_config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = _linears(attention)[-1].in_features // heads
    projections = sum(m.out_features for m in _linears(attention)[:-1])
    query, key = random(1, heads, length, width), random(1, groups, length, width)
    sequence, entered = random(1, length, config.hidden_size), random(1, start, config.hidden_size)

    @memoize  # once for all images
    def ahead() -> tuple[Tensor, Tensor]:
        weights = torch.empty(config.hidden_size, projections, device="meta")
        torch.empty(1, length, config.hidden_size, device="meta") @ weights  # counted, not computed
        return query, key

    alike = Counter((v.llm[layer - 1], v.llm[layer], v.llm[0], v.one_grid) for v in prompt.visuals)
    for (before, after, entry, grid), images in alike.items():
        at, text = _around(before, length, prompt.text, random.device)
        places = _around(entry, start, prompt.text, random.device)
        at, places = at.expand(images, -1), (places[0].expand(images, -1), places[1])
        site = AttentionSite(
            query, key, width**-0.5, causal=True, visual=at, prompt=at.new_zeros(images), hidden=sequence, text=text,
            ahead=ahead, last=torch.tensor([length - 1], device=random.device), norm=nn.Identity(),
            entry=lambda places=places: (entered, *places),
        )  # fmt: skip
        tokens = Tokens("llm", tokens_at(sequence, at, site.prompt), layer=layer, grid=grid, site=site)
        yield _Asked(1, tokens, tokens.hidden, after)


def _around(count: int, length: int, text: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(1, count) places of an image in a prompt and (1, T) of the text after it, which is half of all text."""
    after = text - text // 2
    first = max(0, length - after - count)
    places = torch.arange(length, device=device)[None]
    return places[:, first : first + count], places[:, length - after :]
