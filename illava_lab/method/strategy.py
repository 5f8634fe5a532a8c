"""The vocabulary of the lab: what a strategy sees (`Tokens`), what it returns (`TokenMap`), what it is (`Strategy`).

Every token-reduction method is a sparse linear map from the tokens that enter a place in the model to the fewer
tokens that leave it. A strategy only describes that map; it never touches a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import floor
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from illava_lab.errors import LabError

# "image" is before the model: a smaller picture goes in.
Stage = Literal["image", "encoder", "llm"]
STAGES: tuple[Stage, ...] = ("image", "encoder", "llm")


class Paper(NamedTuple):
    """Where a method was published."""

    title: str
    arxiv: str
    year: int

    def __str__(self) -> str:
        return f"{self.title} (arXiv {self.arxiv}, {self.year})"


# ---------------------------------------------------------------------------------------------- what a strategy sees
STATISTICS: dict[str, str] = {
    "attention_received": "(B, N): mean attention that each token receives, over heads and queries",
    "cls_attention": "(B, N): attention that CLS pays to each token, mean over heads",
    "text_attention": "(B, N): attention that the last text token pays to each visual token, mean over heads",
    "next_text_attention": "(B, N): attention that the last text token would pay in the layer to come, mean over heads",
    "text_rows": "(B, T, N): attention that the text tokens after the image pay to each visual token, mean over heads",
    "lse": "(B, N): log-sum-exp of each query's attention logits, mean over heads",
    "keys": "(B, N, d): attention keys, mean over heads",
    "wide_keys": "(B, N, H*d): attention keys, heads side by side",
    "wide_cls_attention": "(B, N): attention of CLS with one head as wide as the model",
    "text_hidden": "(B, T, C): hidden states of the text tokens after the image",
    "text_wide_keys": "(B, T, H*d): keys of the text tokens after the image, heads side by side",
    "normed_hidden": "(B, N, C): hidden states through the last norm of the LLM",
    "text_normed_hidden": "(B, T, C): hidden states of the text tokens after the image through that norm",
    "embeddings": "(B, N0, C): all tokens of the image as they entered the LLM",
    "text_embeddings": "(B, T, C): the text tokens after the image as they entered the LLM",
}


class Tokens:
    """The visual tokens at one reduction site. Read-only.

    Attributes:
        stage: "image", "encoder" or "llm".
        layer: 0-based index of the layer at which the reduction happens.
        hidden: (B, N, C) hidden states of B images.
        size: (B, N) float, how many image patches each token stands for.
        position: (B, N) long, whose place each token holds: in raster order, crop after crop; -1 for CLS.
        protected: (B, N) bool, tokens that must survive (CLS in the encoder; line ends in the LLM, anywhere, though
            attached models keep those without showing them).
        grid: (height, width) of the patch grid, or None when there is none (an image in crops, a video).

    The statistics (`STATISTICS` lists them) are computed when first read, and only then. A statistic passed as a
    keyword is used as it is, so a strategy can be tried on plain tensors, without a model.

    Raises:
        LabError: unknown stage or statistic, or a tensor whose shape does not fit `hidden`.
    """

    def __init__(
        self,
        stage: Stage,
        hidden: Tensor,
        *,
        layer: int = 0,
        size: Tensor | None = None,
        position: Tensor | None = None,
        protected: Tensor | None = None,
        protected_count: int | None = None,
        grid: tuple[int, int] | None = None,
        site: Any = None,
        **statistics: Tensor,
    ) -> None:
        if stage not in STAGES:
            raise LabError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
        if hidden.dim() != 3:
            raise LabError(f"hidden must be (batch, tokens, channels), got shape {tuple(hidden.shape)}")
        unknown = sorted(set(statistics) - set(STATISTICS))
        if unknown:
            raise LabError(f"unknown statistic {unknown[0]!r}; known are {', '.join(STATISTICS)}")
        batch, count = hidden.shape[:2]
        for name, value in {"size": size, "position": position, "protected": protected}.items():
            if value is not None and tuple(value.shape) != (batch, count):
                raise LabError(f"{name} must have shape {(batch, count)} like hidden, got {tuple(value.shape)}")
        self.stage, self.layer, self.hidden, self.grid = stage, layer, hidden, grid
        self.size = torch.ones(batch, count, device=hidden.device) if size is None else size
        self.position = torch.arange(count, device=hidden.device).expand(batch, -1) if position is None else position
        self._protected, self._protected_count = protected, protected_count
        self._site = site
        self._statistics = dict(statistics)

    @property
    def has_protected(self) -> bool:
        """Whether any token may be protected (known without looking at the device)."""
        return self._protected is not None

    @property
    def protected(self) -> Tensor:
        if self._protected is None:
            return torch.zeros(self.hidden.shape[:2], dtype=torch.bool, device=self.hidden.device)
        return self._protected

    @cached_property
    def protected_count(self) -> int:
        """Protected tokens per row; the most of any row. Counted on the device, unless it was given."""
        if not self.has_protected:
            return 0
        given = self._protected_count
        return int(self.protected.sum(dim=1).max()) if given is None else given

    def room(self, keep: int) -> int:
        """How many of `keep` slots are left beside the protected tokens.

        Raises:
            LabError: the protected tokens alone are more than `keep`.
        """
        if keep < self.protected_count:
            raise LabError(f"keep must be at least {self.protected_count}, the number of protected tokens, got {keep}")
        return keep - self.protected_count

    @property
    def batch(self) -> int:
        return self.hidden.shape[0]

    @property
    def count(self) -> int:
        """N, the number of tokens per row, protected ones included."""
        return self.hidden.shape[1]

    def __getattr__(self, name: str) -> Tensor:
        # Only reached for names that are not plain attributes, that is: for the statistics.
        if name not in STATISTICS:
            raise AttributeError(f"Tokens has no {name!r}; statistics are {', '.join(STATISTICS)}")
        if name not in self._statistics:
            if self._site is None:
                have = ", ".join(self._statistics) or "none"
                raise LabError(
                    f"{name} was not given; statistics given here: {have}. Pass it as Tokens(..., {name}=...)"
                )
            self._statistics[name] = self._site.statistic(name)
        return self._statistics[name]

    def __repr__(self) -> str:
        return f"Tokens(stage={self.stage!r}, layer={self.layer}, shape={tuple(self.hidden.shape)})"


# ---------------------------------------------------------------------------------------------- what it returns
@dataclass(frozen=True, eq=False)
class TokenMap:
    """A batch of sparse linear maps from N tokens to M slots.

    ``y[m] = self_weight[m] * x[anchor[m]] + sum over edges e with slot[e] == m of weight[e] * x[source[e]]``

    Attributes:
        anchor: (B, M) long. The token whose place, position and order each slot takes; also its first source.
        tokens: N, the number of tokens that enter.
        self_weight: (B, M) float or None for ones.
        slot, source: (B, E) long or None for no edges: token `source` contributes to slot `slot`.
        weight: (B, E) float. Rows with fewer edges are padded with weight 0.
        score: (B, N) float or None: what the strategy ranked by, kept for pictures.
    """

    anchor: Tensor
    tokens: int
    self_weight: Tensor | None = None
    slot: Tensor | None = None
    source: Tensor | None = None
    weight: Tensor | None = None
    score: Tensor | None = None

    # ---- the usual cases
    @staticmethod
    def keep(anchor: Tensor, tokens: int, score: Tensor | None = None) -> TokenMap:
        """Pure pruning: the tokens `anchor` (B, M) survive, the others of the `tokens` are dropped."""
        return TokenMap(anchor, tokens, score=score)

    @staticmethod
    def identity(tokens: Tokens) -> TokenMap:
        """Every token stays where it is."""
        everything = torch.arange(tokens.count, device=tokens.hidden.device)
        return TokenMap.keep(everything.expand(tokens.batch, -1), tokens.count)

    @staticmethod
    def merge_into(anchor: Tensor, slot: Tensor, source: Tensor, size: Tensor, score: Tensor | None = None) -> TokenMap:
        """Size-weighted averages: token `source[e]` joins slot `slot[e]`; every slot is the mean over its members.

        Args:
            anchor: (B, M) long, the survivors.
            slot, source: (B, E) long.
            size: (B, N) float, how many patches each token stands for.
        """
        own = size.gather(1, anchor)
        joining = size.gather(1, source)
        total = own.scatter_add(1, slot, joining)
        return TokenMap(anchor, size.shape[1], own / total, slot, source, joining / total.gather(1, slot), score=score)

    @staticmethod
    def from_matrix(matrix: Tensor, anchor: Tensor) -> TokenMap:
        """The map of a dense (B, M, N) matrix, for teaching: slot m takes the place of token anchor[b, m]."""
        own = matrix.gather(2, anchor[..., None])[..., 0]
        rest = matrix.scatter(2, anchor[..., None], 0.0)
        edges = [torch.nonzero(row) for row in rest]
        width = max((len(e) for e in edges), default=0)
        slot = anchor.new_zeros(len(edges), width)
        source, weight = slot.clone(), matrix.new_zeros(len(edges), width)
        for b, e in enumerate(edges):
            slot[b, : len(e)], source[b, : len(e)] = e[:, 0], e[:, 1]
            weight[b, : len(e)] = rest[b, e[:, 0], e[:, 1]]
        return TokenMap(anchor, matrix.shape[2], own, slot, source, weight)

    # ---- what it does
    @property
    def slots(self) -> int:
        """M, the number of tokens that leave."""
        return self.anchor.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        """Map x (B, N, C) to (B, M, C). Accumulates in float32 or better, and casts once."""
        kept = x.gather(1, self.anchor[..., None].expand(-1, -1, x.shape[2]))
        if self.weight is None:
            return kept
        # In place, on what was made here: in float32 these are large.
        wide = torch.promote_types(x.dtype, torch.float32)
        kept = kept.to(wide)
        if self.self_weight is not None:
            kept.mul_(self.self_weight.to(wide)[..., None])
        moved = x.gather(1, self.source[..., None].expand(-1, -1, x.shape[2])).to(wide)
        moved.mul_(self.weight.to(wide)[..., None])
        return kept.scatter_add_(1, self.slot[..., None].expand_as(moved), moved).to(x.dtype)

    def sizes(self, size: Tensor) -> Tensor:
        """Patches that each slot stands for: (B, N) -> (B, M).

        A token that keeps a slot keeps its own patches. A token that does not is divided over the slots it feeds, in
        proportion to its weights there, so the total is the total before minus what was dropped.
        """
        out = size.gather(1, self.anchor)
        if self.weight is None:
            return out
        given = torch.zeros_like(size).scatter_add(1, self.source, self.weight.to(size.dtype).abs())
        survives = torch.zeros_like(size, dtype=torch.bool).scatter(1, self.anchor, True)
        share = self.weight.to(size.dtype).abs() / given.gather(1, self.source).clamp_min(torch.finfo(size.dtype).tiny)
        moved = (share * size.gather(1, self.source)).masked_fill(survives.gather(1, self.source), 0.0)
        return out.scatter_add(1, self.slot, moved)

    def matrix(self) -> Tensor:
        """The dense (B, M, N) weights, float64. For pictures and checks; memory grows with M times N."""
        batch = self.anchor.shape[0]
        own = (
            torch.ones_like(self.anchor, dtype=torch.float64) if self.self_weight is None else self.self_weight.double()
        )
        dense = own.new_zeros(batch, self.slots, self.tokens).scatter(2, self.anchor[..., None], own[..., None])
        if self.weight is None:
            return dense
        flat = dense.flatten(1).scatter_add(1, self.slot * self.tokens + self.source, self.weight.double())
        return flat.view_as(dense)

    def then(self, after: TokenMap) -> TokenMap:
        """This map followed by `after`, as one map (through dense matrices: for pictures, not for inference).

        Raises:
            LabError: `after` does not start from as many tokens as this map leaves.
        """
        if after.tokens != self.slots:
            raise LabError(f"cannot compose: this map leaves {self.slots} tokens, the next one expects {after.tokens}")
        return TokenMap.from_matrix(after.matrix() @ self.matrix(), self.anchor.gather(1, after.anchor))

    def __repr__(self) -> str:
        edges = 0 if self.weight is None else self.weight.shape[1]
        return f"TokenMap(batch={self.anchor.shape[0]}, {self.tokens} -> {self.slots} tokens, {edges} edges)"


# ---------------------------------------------------------------------------------------------- what a strategy is
@dataclass(frozen=True)
class Strategy:
    """A token-reduction method. Subclass it, give it a `name`, and write `map`.

    Fields of a subclass are its settings (every subclass becomes a frozen dataclass), so its repr is its
    configuration. Validate them in ``__post_init__`` with `one_of`.

    Class attributes:
        name: how users call it.
        paper: where it was published, or None.
        stages: where it may run.
        home: where its paper runs it, and so where a budget is spent (`Schedule.for_budget`); empty for all stages.
        kind: "prune", "merge" or "pool".
        smallest_keep: the smallest fraction of tokens it can keep at one layer; 0 for no limit.
        proportional_attention: add the log of token sizes to later encoder attention (ToMe).
        averages: every slot is an average, its weights sum to 1. False where the method adds (VisionZip, PruMerge).
        memory: how the largest tensor that `map` makes grows with N: "quadratic" if it compares tokens with tokens.

    A subclass may make any of them a property, where a setting decides. `illava_lab.testing` checks what is declared.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None
    stages: ClassVar[tuple[Stage, ...]] = ("encoder", "llm")
    home: ClassVar[tuple[Stage, ...]] = ()
    kind: ClassVar[Literal["none", "prune", "merge", "pool"]] = "merge"
    smallest_keep: ClassVar[float] = 0.0
    proportional_attention: ClassVar[bool] = False
    averages: ClassVar[bool] = True
    memory: ClassVar[Literal["linear", "quadratic"]] = "linear"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True)(cls)

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        """Reduce `tokens` (B, N, C) to `keep` slots, protected tokens included; `keep` is from these and 1 to N."""
        raise TypeError(f"{type(self).__name__} must define map(self, tokens, keep)")

    def reachable_keep(self, keep: int, grid: tuple[int, int]) -> int:
        """The number of patches nearest to `keep` that this method can leave of an image of `grid` patches."""
        return keep

    def counts(self, stage: Stage, steps: int, before: int, after: int) -> list[int]:
        """Tokens left after each of `steps` layers of a stage, on the way from `before` to `after`.

        Equally many go at every layer, as far as `smallest_keep` allows; a method with another split overrides this.
        """
        out = [before - round((before - after) * (i + 1) / steps) for i in range(steps)]
        for i in range(steps - 1, 0, -1):
            if self.smallest_keep:
                out[i - 1] = min(out[i - 1], floor(out[i] / self.smallest_keep))
        return out

    def layers(self, stage: Stage, depth: int) -> list[int]:
        """The layers at which this method reduces by default, in a stage of `depth` layers.

        Encoder: four layers in a row from a fifth of the depth; LLM: one layer, at two sevenths of the depth. Both
        are where the image preset of iLLaVA stands (layers 5-8 of 26, layer 8 of 28).
        """
        if stage == "encoder":
            start = round(depth * 5 / 26)
            return list(range(start, min(start + 4, depth)))
        return [min(max(1, round(depth * 8 / 28)), depth - 1)]


class Scorer(Strategy):
    """A pruning strategy that only scores: the tokens with the highest score are kept, in their order."""

    kind = "prune"

    def score(self, tokens: Tokens) -> Tensor:
        """(B, N) scores, higher is kept; ties go to the smaller index."""
        raise TypeError(f"{type(self).__name__} must define score(self, tokens)")

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        score = self.score(tokens)
        expected = (tokens.batch, tokens.count)
        if tuple(score.shape) != expected:
            raise LabError(f"{self.name}: score must return shape {expected} (batch, tokens), got {tuple(score.shape)}")
        return TokenMap.keep(highest(score, keep, tokens), tokens.count, score=score)


def highest(score: Tensor, keep: int, tokens: Tokens) -> Tensor:
    """(B, keep) indices of the highest scores, ascending; protected tokens first, ties to the smaller index.

    Raises:
        LabError: there are more protected tokens than `keep`.
    """
    tokens.room(keep)
    return ranking(score, tokens)[:, :keep].sort(dim=1).values


def ranking(score: Tensor, tokens: Tokens) -> Tensor:
    """(B, N) indices by falling score; protected tokens first, NaN last, ties to the smaller index."""
    score = score if score.is_floating_point() else score.float()
    # Below the infinity of protected tokens, and NaN, which sorting would put first, below everything.
    score = score.nan_to_num(nan=-torch.inf, posinf=torch.finfo(score.dtype).max, neginf=-torch.inf)
    if tokens.has_protected:
        score = score.masked_fill(tokens.protected, float("inf"))
    return score.argsort(dim=1, descending=True, stable=True)


def one_of(setting: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Validate a setting.

    Raises:
        LabError: the value is not among those allowed.
    """
    if value not in allowed:
        raise LabError(f"{setting} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
