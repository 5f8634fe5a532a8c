"""Small tokens without a model, for checks and for trying a strategy in a notebook."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.strategy import STAGES, STATISTICS, Stage, Tokens
from illava_lab.sites.attention import AttentionSite

CHANNELS, HEADS = 8, 2
TEXT_BEFORE, TEXT_AFTER = 2, 3


class NotHere(LabError):
    """A strategy asked for a statistic that the stage does not have."""


@dataclass(frozen=True)
class _Lacks:
    """In the place of an attention, where every statistic that the stage has is given."""

    site: AttentionSite | None

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

    Raises:
        LabError: unknown stage, or fewer than one patch or row.
    """
    if stage not in STAGES:
        raise LabError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
    if patches < 1 or batch < 1:
        raise LabError(f"patches and batch must be at least 1, got {patches} and {batch}")
    draw = torch.Generator().manual_seed(seed)
    extra = newlines if stage == "llm" else int(cls)
    count, (height, width) = patches + extra, squarest_grid(2 * patches if reduced else patches)
    protected = torch.zeros(batch, count, dtype=torch.bool)
    if stage != "llm":
        protected[:, :extra] = True
    elif extra:
        protected.scatter_(1, torch.rand(batch, count, generator=draw).argsort(dim=1)[:, :extra], True)
    place = torch.rand(batch, height * width, generator=draw).argsort(dim=1)[:, :patches].sort(dim=1).values
    position = torch.full((batch, count), -1).masked_scatter(~protected, place)
    size = torch.ones(batch, count)
    if reduced:
        size = torch.where(protected, size, torch.randint(1, 5, (batch, count), generator=draw).float())

    if stage == "image":
        site, hidden = None, torch.zeros(batch, count, 1, dtype=dtype, device=device)
    else:
        entered = count + height * width - patches
        has_cls = stage == "encoder" and cls
        site, hidden = _example_site(stage, batch, count, entered, has_cls, equal, dtype, device, draw)
    lacks, given = _Lacks(site), {}
    for name in STATISTICS:
        try:
            given[name] = lacks.statistic(name)
        except NotHere:
            continue
    return Tokens(
        stage,
        hidden,
        layer=1,
        size=size.to(device),
        position=position.to(device),
        protected=protected.to(device) if extra else None,
        grid=(height, width),
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
        out = torch.randn(batch, before + visual + after, CHANNELS, generator=draw)
        if equal:
            out[:, before : before + visual] = out[:, before : before + 1]
        return out.to(device, dtype)

    def heads(x: Tensor) -> tuple[Tensor, Tensor]:
        weights = (torch.randn(CHANNELS, CHANNELS, generator=draw).to(device, dtype) for _ in ("query", "key"))
        return tuple((x @ weight).unflatten(2, (HEADS, -1)).transpose(1, 2) for weight in weights)

    before, after = (TEXT_BEFORE, TEXT_AFTER) if stage == "llm" else (0, 0)
    states = sequence(count)
    hidden, (query, key) = states[:, before : before + count], heads(states)
    site = AttentionSite(query, key, (CHANNELS // HEADS) ** -0.5, has_cls=has_cls, hidden=states)
    if stage == "llm":
        came, ahead = sequence(entered), heads(states)
        places = [torch.arange(before, before + n, device=device).expand(batch, -1) for n in (count, entered)]
        text = [torch.arange(before + n, before + n + after, device=device).expand(batch, -1) for n in (count, entered)]
        site = replace(
            site,
            causal=True,
            visual=places[0],
            last=torch.full((batch,), before + count + after - 1, device=device),
            ahead=lambda: ahead,
            text=text[0],
            entry=lambda: (came, places[1], text[1]),
            norm=torch.nn.RMSNorm(CHANNELS, elementwise_affine=False),
        )
    return site, hidden.clone()


def squarest_grid(patches: int) -> tuple[int, int]:
    """The squarest grid of so many patches."""
    height = next(h for h in range(isqrt(patches), 0, -1) if patches % h == 0)
    return height, patches // height


def tensors(tokens: Tokens) -> dict[str, Tensor]:
    own = {"hidden": tokens.hidden, "size": tokens.size, "position": tokens.position}
    return own | ({"protected": tokens.protected} if tokens.has_protected else {}) | tokens._statistics


def changed(tokens: Tokens, change: Callable[[str, Tensor], Tensor]) -> Tokens:
    """New tokens, every tensor x of the old ones replaced by change(name, x)."""
    new = {name: change(name, x) for name, x in tensors(tokens).items()}
    return Tokens(tokens.stage, new.pop("hidden"), layer=tokens.layer, grid=tokens.grid, site=tokens._site, **new)


@dataclass(frozen=True)
class Case:
    """What a strategy was asked: `keep` of these tokens."""

    stage: Stage
    patches: int
    keep: int
    batch: int = 1
    cls: bool = False
    newlines: int = 0
    reduced: bool = False
    equal: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def protected(self) -> int:
        return int(self.cls) + self.newlines

    @property
    def count(self) -> int:
        return self.patches + self.protected

    def tokens(self) -> Tokens:
        """Fresh ones, which a strategy may spoil."""
        return changed(_example(replace(self, keep=0)), lambda name, x: x.clone())

    def __str__(self) -> str:
        protected = f", {self.newlines} of them protected line ends" if self.newlines else ", CLS first" * self.cls
        height, width = squarest_grid(2 * self.patches if self.reduced else self.patches)
        parts = [f"{self.stage} stage", f"batch {self.batch}", f"{self.count} tokens{protected}", f"keep {self.keep}"]
        parts += [f"grid {height} x {width}" + (" with patches missing" if self.reduced else "")]
        parts += ["all tokens equal"] if self.equal else []
        parts += [str(self.dtype).removeprefix("torch.")] if self.dtype != torch.float32 else []
        parts += [self.device] if self.device != "cpu" else []
        return ", ".join(parts)


@lru_cache(maxsize=256)
def _example(case: Case) -> Tokens:
    return example_tokens(
        case.stage, case.patches, case.batch, cls=case.cls, newlines=case.newlines, reduced=case.reduced,
        equal=case.equal, dtype=case.dtype, device=case.device,
    )  # fmt: skip
