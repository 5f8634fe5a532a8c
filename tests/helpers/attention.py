"""Attentions of all kinds at random, and their statistics written from the formula: a full matrix in float64."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from illava_lab.sites.attention import AttentionSite
from illava_lab.sites.packed import PackedAttention
from illava_lab.sites.scores import Spans

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 5, 16, 33, 64, 72, 80, 128)
MASKS = ("none", "keys", "boolean", "additive", "lowest", "per key", "per head")

# Halves are multiplied exactly in float32, and all sums are float32: the same bound holds for the three dtypes. Logits
# of some units are off by some 1e-6 after up to 128 products, and weights as much in proportion.
TOLERANCE = {"rtol": 3e-5, "atol": 3e-6}


@dataclass
class Case:
    """A site, and what the formula says of it."""

    site: AttentionSite
    received: Tensor  # (P, S) float64, mean over heads and queries
    lse: Tensor  # (P, S) float64, mean over heads
    counted: Tensor  # (P, S) bool, False at padding
    name: str

    def check(self, twice: bool = True) -> None:
        """Both statistics equal the formula; asked for twice, they have the same bits."""
        for name, want in (("attention_received", self.received), ("lse", self.lse)):
            got = self.site.statistic(name)
            assert got.dtype == torch.float32, self.name
            if twice:
                assert torch.equal(got.view(torch.int32), self.site.statistic(name).view(torch.int32)), self.name
            if name == "lse":  # of padding it says nothing
                got, want = got[self.counted], want[self.counted]
            note = f"{self.name}, {name}: "
            torch.testing.assert_close(got.double(), want, **TOLERANCE, msg=lambda why, note=note: note + why)


def random_case(seed: int, longest: int, most: int = 3) -> Case:
    """Any combination of sizes, dtypes, layouts, masks, padding, order and packed sequences.

    Args:
        longest: tokens, most: prompts, groups of keys, and heads of a group.
    """
    draw, torch_draw = random.Random(seed), torch.Generator().manual_seed(seed)
    packed = draw.random() < 0.2
    prompts, groups, shared = 1 if packed else draw.randint(1, most), draw.randint(1, most), draw.randint(1, most)
    length, width, dtype = draw.randint(1, longest), draw.choice(WIDTHS), draw.choice(DTYPES)
    heads = groups * shared
    query, key = (_tokens(draw, torch_draw, prompts, n, length, width, dtype) for n in (heads, groups))
    scaling = draw.choice((1, 0.125, width**-0.5))
    kind, causal = draw.choice(MASKS), draw.random() < 0.4
    mask, visible, added = _mask(draw, torch_draw, kind, prompts, heads, length)
    if causal and (mask is None or mask.dim() == 2):
        visible = visible & torch.ones(length, length, dtype=torch.bool).tril()
    valid, spans = None, None
    if draw.random() < 0.4:
        valid = _padding(draw, prompts, length)
        visible = visible & valid[:, None, None] & valid[:, None, :, None]
        if draw.random() < 0.5:  # what a kernel leaves at padding
            for x in (query, key):
                x.masked_fill_(~valid[:, None, :, None], torch.nan)
    if packed:
        spans, number = _sequences(draw, length)
        visible = visible & (number == number[:, None])
    name = f"{seed}: {tuple(query.shape)} {groups} groups {dtype} mask {kind} causal {causal} valid {valid is not None} packed {packed}"
    site = AttentionSite(query, key, scaling, mask, valid, causal, spans=spans)
    weights, sums = _formula(query, key, scaling, added, visible.expand(prompts, heads, length, length))
    counted = torch.ones(prompts, length, dtype=torch.bool) if valid is None else valid
    received = weights.sum((1, 2)) / (heads * counted.sum(1, keepdim=True))
    if draw.random() < 0.3:
        site = replace(site, row_lse=sums.float().masked_fill(~counted[:, None], torch.nan))
    return Case(site, received, sums.mean(1), counted, name)


@dataclass
class PackedCase:
    """The attention of a packed tower, and what the formula says of its cells."""

    attention: PackedAttention
    received: Tensor  # (G,) float64, mean over heads, sum over queries
    lse: Tensor  # (G,) float64

    def check(self) -> None:
        """Both statistics of all cells."""
        for name, want in (("attention_received", self.received), ("lse", self.lse)):
            torch.testing.assert_close(self.attention.per_cell(name).double(), want, **TOLERANCE)


def packed_case(seed: int, windows: bool, sizes: bool) -> PackedCase:
    """Two frames or three, whole or in windows of unequal lengths; with a size for each cell or without."""
    draw, torch_draw = random.Random(seed), torch.Generator().manual_seed(seed)
    heads, width, patches, dtype = draw.randint(1, 3), draw.choice((16, 40, 80)), 4, draw.choice(DTYPES)
    lengths = [patches * draw.randint(2, 9) for _ in range(draw.randint(2, 3))]
    total, ends = sum(lengths), [sum(lengths[: n + 1]) for n in range(len(lengths))]
    frames = [torch.arange(end - length, end)[None] for length, end in zip(lengths, ends, strict=True)]
    if windows:
        ends = sorted({*ends, *(patches * draw.randrange(1, total // patches) for _ in range(3))})
        ends = ends if len(ends) > len(lengths) else sorted({*ends, *range(patches, total, patches)})
    bounds = torch.tensor([0, *ends])
    number = torch.repeat_interleave(torch.arange(len(ends)), bounds.diff())
    query, key = (_tokens(draw, torch_draw, 1, heads, total, width, dtype) for _ in range(2))
    log_size = torch.rand(total, generator=torch_draw, dtype=torch.float32) * 2 if sizes else None
    added = torch.zeros(total, dtype=torch.float64) if log_size is None else log_size.double()
    weights, sums = _formula(query, key, 0.2, added, (number == number[:, None]).expand(1, heads, -1, -1))
    received, lse = (x.view(-1, patches).mean(1) for x in (weights.sum((0, 1, 2)) / heads, sums[0].mean(0)))
    rotary = (torch.ones(total, width), torch.zeros(total, width))
    cut = draw.randrange(1, total)  # queries and keys come in pieces
    parts = [(query[0, :, part], key[0, :, part], key[0, :, part]) for part in (slice(None, cut), slice(cut, None))]
    return PackedCase(PackedAttention(parts, rotary, 0.2, bounds, frames, log_size, patches), received, lse)


def _formula(query: Tensor, key: Tensor, scaling: float, added: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (P, H, T, S), zero in a row that sees nothing, and the log-sum-exp (P, H, T) of each row."""
    key = key.double().repeat_interleave(query.shape[1] // key.shape[1], 1)
    logits = torch.einsum("phtd,phsd->phts", query.double(), key) * scaling + added
    logits = torch.where(visible, logits, -torch.inf)
    sums = logits.logsumexp(-1)
    return torch.where(visible, (logits - sums[..., None]).exp(), 0.0), sums


def _tokens(draw, torch_draw, prompts: int, heads: int, length: int, width: int, dtype: torch.dtype) -> Tensor:
    """(P, H, S, d), as a projection leaves it, or as a rotation does."""
    shape = (prompts, length, heads, width) if (inside := draw.random() < 0.5) else (prompts, heads, length, width)
    x = torch.randn(shape, generator=torch_draw, dtype=torch.float32, device="cpu").to(dtype)
    return x.transpose(1, 2) if inside else x


def _mask(draw, torch_draw, kind: str, prompts: int, heads: int, length: int) -> tuple[Tensor | None, Tensor, Tensor]:
    """The mask as a model makes it, what it leaves visible and what it adds."""
    everything, nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    if kind == "none":
        return None, everything, nothing
    rows = 1 if kind == "per key" else draw.choice((1, length))
    shape = (draw.choice((1, prompts)), heads if kind == "per head" else 1, rows, length)
    visible = torch.rand(shape, generator=torch_draw, device="cpu") < draw.choice((0.05, 0.5, 0.95))
    if kind == "keys":
        keys = visible[:, 0, 0].expand(prompts, -1)
        return keys if draw.random() < 0.5 else keys.long(), keys[:, None, None], nothing
    room = draw.choice((0, 5))  # of a cache that is longer than the prompt
    if kind == "boolean":
        return torch.nn.functional.pad(visible, (0, room), value=True), visible, nothing
    added = torch.randn(shape, generator=torch_draw, dtype=torch.float32, device="cpu")
    dtype = draw.choice(DTYPES)
    mask = added.to(dtype)
    added = mask.double()
    if kind == "per key":
        return mask, everything, added
    lowest = torch.finfo(dtype).min if kind == "lowest" else -torch.inf
    return torch.nn.functional.pad(mask.masked_fill(~visible, lowest), (0, room)), visible, added


def _padding(draw, prompts: int, length: int) -> Tensor:
    """(P, S) bool: left, right or on both sides, at least one token left."""
    valid = torch.ones(prompts, length, dtype=torch.bool)
    for row in valid:
        left = draw.choice((0, draw.randrange(length)))
        right = draw.choice((0, draw.randrange(length - left)))
        row[:left] = False
        row[length - right :] = False
    return valid


def _sequences(draw, length: int) -> tuple[Spans, Tensor]:
    """Sequences one after another, and for each token the number of its own."""
    cuts = sorted(draw.sample(range(1, length), min(length - 1, draw.randint(0, 4))))
    bounds = torch.tensor([0, *cuts, length], dtype=torch.int32)
    number = torch.repeat_interleave(torch.arange(len(cuts) + 1), bounds.diff().long())
    return Spans(bounds[number], bounds[number + 1]), number
