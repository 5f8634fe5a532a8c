"""Example tokens: what a strategy would see in a model, made of random numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.tokens import STAGES, STATISTICS, Stage, Tokens
from illava_lab.sites.attention import AttentionSite, EntrySite
from illava_lab.testing.tensors import squarest_grid

CHANNELS, HEADS = 8, 2


TEXT_BEFORE, TEXT_AFTER = 2, 3


class NotHere(LabError):
    """A strategy asked for a statistic that the stage does not have."""


@dataclass(frozen=True)
class _Lacks:
    """In the place of an attention, where every statistic that the stage has is given."""

    site: AttentionSite | EntrySite | None

    def statistic(self, name: str) -> Tensor:
        if self.site is None:
            raise NotHere(f"{name} needs the model, which has not run when the picture is shrunk")
        try:
            return self.site.statistic(name)
        except LabError as error:
            raise NotHere(str(error)) from None


def example_tokens(
    stage: Stage,
    patches: int = 16,
    batch: int = 2,
    *,
    cls: bool = True,
    newlines: int = 0,
    reduced: bool = False,
    equal: bool = False,
    entry: bool = False,
    video: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Tokens:
    """Small random tokens with all statistics that a stage has, taken from one attention, so that they fit together.

    Args:
        stage: "encoder", "llm" (a prompt with text before and after the visual tokens, causal attention), or "image",
            which is before the model: states are (B, N, 1) zeros, and there are no statistics.
        patches, batch: N without protected tokens, and B. Hidden states are (B, N, 8), in 2 heads of 4.
        cls: not in the LLM, a protected CLS token in front.
        newlines: LLM only, protected tokens at random places, others in every row.
        reduced: as after an earlier reduction: patches are missing, and others stand for several.
        equal: all tokens are alike.
        video: LLM only, frames of a video: as many as the squarest grid has rows, each as long as one of these.
        entry: LLM only, in front of its first layer, where there is no attention yet.

    Raises:
        LabError: unknown stage, or fewer than one patch or row.
    """
    if stage not in STAGES:
        raise LabError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    if patches < 1 or batch < 1:
        raise LabError(f"patches and batch must be at least 1, got {patches} and {batch}")
    draw = torch.Generator("cpu").manual_seed(seed)
    extra = newlines if stage == "llm" else int(cls)
    count, (height, width) = patches + extra, squarest_grid(2 * patches if reduced else patches)
    protected = torch.zeros(batch, count, dtype=torch.bool, device="cpu")
    if stage != "llm":
        protected[:, :extra] = True
    elif extra:
        protected.scatter_(1, _uniform(draw, batch, count).argsort(dim=1)[:, :extra], True)
    place = _uniform(draw, batch, height * width).argsort(dim=1)[:, :patches].sort(dim=1).values
    position = torch.full((batch, count), -1, dtype=torch.long, device="cpu").masked_scatter(~protected, place)
    size = torch.ones(batch, count, dtype=torch.float32, device="cpu")
    if reduced:
        size = torch.where(protected, size, torch.randint(1, 5, (batch, count), generator=draw, device="cpu").float())

    if stage == "image":
        site, hidden = None, torch.zeros(batch, count, 1, dtype=dtype, device=device)
    else:
        entered = count + height * width - patches
        has_cls = stage == "encoder" and cls
        site, hidden = _example_site(stage, batch, count, entered, has_cls, equal, dtype, device, draw)
    lacks, given = _Lacks(EntrySite(site) if site is not None and entry else site), {}
    for name in STATISTICS:
        try:
            given[name] = lacks.statistic(name)
        except NotHere:
            continue
    return Tokens(
        stage,
        hidden,
        layer=int(not entry),
        size=size.to(device),
        position=position.to(device),
        protected=protected.to(device) if extra else None,
        protected_count=None,
        grid=None if video else (height, width),
        frames=(height, width) if video else None,
        plan=None,
        site=lacks,
        **given,
    )


def _example_site(
    stage: Stage,
    batch: int,
    count: int,
    entered: int,
    has_cls: bool,
    equal: bool,
    dtype: torch.dtype,
    device: str | torch.device,
    draw: torch.Generator,
) -> tuple[AttentionSite, Tensor]:
    """One attention over `count` visual tokens, of `entered` that came into the LLM; and their hidden states."""

    def sequence(visual: int) -> Tensor:
        out = _normal(draw, batch, before + visual + after, CHANNELS)
        if equal:
            out[:, before : before + visual] = out[:, before : before + 1]
        return out.to(device, dtype)

    def heads(x: Tensor) -> tuple[Tensor, Tensor]:
        weights = (_normal(draw, CHANNELS, CHANNELS).to(device, dtype) for _ in ("query", "key"))
        return tuple((x @ weight).unflatten(2, (HEADS, -1)).transpose(1, 2) for weight in weights)

    before, after = (TEXT_BEFORE, TEXT_AFTER) if stage == "llm" else (0, 0)
    states = sequence(count)
    hidden, (query, key) = states[:, before : before + count], heads(states)
    site = AttentionSite(query, key, (CHANNELS // HEADS) ** -0.5, has_cls=has_cls, hidden=states)
    if stage == "encoder":
        site = replace(site, value=heads(states)[0])
    if stage == "llm":
        came, ahead = sequence(entered), heads(states)
        places = [
            torch.arange(before, before + n, dtype=torch.long, device=device).expand(batch, -1)
            for n in (count, entered)
        ]
        text = [
            torch.arange(before + n, before + n + after, dtype=torch.long, device=device).expand(batch, -1)
            for n in (count, entered)
        ]
        site = replace(
            site,
            causal=True,
            visual=places[0],
            last=torch.full((batch,), before + count + after - 1, dtype=torch.long, device=device),
            ahead=lambda: ahead,
            text=text[0],
            entry=lambda: (came, places[1], text[1]),
            norm=torch.nn.RMSNorm(CHANNELS, elementwise_affine=False),
            value=heads(states)[0],
            joint=partial(_pair, sequence(count)[:, :count], sequence(2)[:, :2]),
        )
    return site, hidden.clone()


def _pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return first, second


def _uniform(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=draw, dtype=torch.float32, device="cpu")


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw, dtype=torch.float32, device="cpu")
