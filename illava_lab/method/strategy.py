"""What a strategy is: a class that describes a map, and never touches a model.

Every token-reduction method is a sparse linear map from the tokens that enter a place in the model to the fewer
tokens that leave it: `Tokens` in, `TokenMap` out.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import floor
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.keep import Keep
from illava_lab.method.ranking import highest
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Medium, Stage, Tokens


class Paper(NamedTuple):
    """Where a method was published."""

    title: str
    arxiv: str
    year: int

    def __str__(self) -> str:
        return f"{self.title} (arXiv {self.arxiv}, {self.year})"


@dataclass(frozen=True)
class Strategy:
    """A token-reduction method. Subclass it, give it a `name`, and write `map`.

    Fields of a subclass are its settings (every subclass becomes a frozen dataclass), so its repr is its
    configuration. Validate them in ``__post_init__`` with `one_of`.

    Class attributes:
        name: how users call it. Never a property: the registry knows the class by it.
        paper: where it was published, or None.
        stages: where it may run.
        first_llm_layer: the first LLM layer before which it can run; 0, on what the projector made, needs no attention.
        media: what it reduces in the LLM. Where it is videos alone, a picture beside one stays whole.
        home: where its paper runs it, and so where a budget is spent (`Schedule.for_budget`); empty for all stages.
        kind: "prune", "merge" or "pool".
        smallest_keep: the smallest fraction of tokens it can keep at one layer; 0 for no limit.
        proportional_attention: add the log of token sizes to later encoder attention (ToMe).
        proportional_in_llm: add it to the attention of LLM layers, too (ours); decoding is then not captured in graphs.
        encoder_share: of the log of what a budget over both stages keeps, the encoder's part.
        averages: every slot is an average, its weights sum to 1. False where the method adds (VisionZip, PruMerge).
        own_count: the picture decides how many of its tokens stay (`count`), and schedules say how many in the mean.
        memory: how the largest tensor that `map` makes grows with N: "quadratic" if it compares tokens with tokens.

    With `own_count` the host waits for each such decision, and nothing is captured in graphs.

    Where a setting decides, a subclass may make any of them but `name` a property of the instance. A model with the
    strategy attached, budgets and checks then see the value of the instance. Lists of strategies and `register` see
    the one that default settings give (`illava_lab.method.declared`), and nothing where a setting has no default.
    `illava_lab.testing` checks what is declared.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[Paper | None] = None
    stages: ClassVar[tuple[Stage, ...]] = ("encoder", "llm")
    first_llm_layer: ClassVar[int] = 1
    media: ClassVar[tuple[Medium, ...]] = ("image", "video")
    home: ClassVar[tuple[Stage, ...]] = ()
    kind: ClassVar[Literal["none", "prune", "merge", "pool"]] = "merge"
    smallest_keep: ClassVar[float] = 0.0
    proportional_attention: ClassVar[bool] = False
    proportional_in_llm: ClassVar[bool] = False
    encoder_share: ClassVar[float] = 0.6633  # log(361/729) / log(361/729 * 0.70): iLLaVA's image preset
    averages: ClassVar[bool] = True
    own_count: ClassVar[bool] = False
    memory: ClassVar[Literal["linear", "quadratic"]] = "linear"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclass(frozen=True)(cls)

    @property
    def label(self) -> str:
        """The name, and in brackets the settings that are not the defaults, such as ``illava(score='lse')``."""
        changed = [f"{f.name}={value!r}" for f in fields(self) if (value := getattr(self, f.name)) != f.default]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        """Reduce `tokens` (B, N, C) to `keep` slots, protected tokens included; `keep` is from these and 1 to N."""
        raise TypeError(f"{type(self).__name__} must define map(self, tokens, keep)")

    def count(self, tokens: Tokens, keep: Keep) -> Tensor | None:
        """(B,) long, with `own_count`: how many slots each picture keeps, protected ones included; `map` is then asked
        for as many. None where the schedule decides.

        Args:
            keep: what the schedule says here: the fraction, or number, of visual tokens that pictures keep on the mean.
        """
        return None

    def looks(self, depth: int) -> list[int]:
        """Encoder layers, of `depth`, at which it takes a `note` of the tokens, whether any go there or not."""
        return []

    def note(self, tokens: Tokens, noted: Tensor | None) -> Tensor:
        """(B, N) or (B, N, k): what to remember of each of these tokens. From here on it is `tokens.noted`.

        Args:
            noted: what was noted of them before; None at the first layer that it `looks` at.
        """
        raise TypeError(f"{type(self).__name__} must define note(self, tokens, noted)")

    def at(self, stage: Stage, layer: int) -> Strategy:
        """The strategy that is asked at a layer: this one, unless it is made of several (`illava_lab.compose`).

        Raises:
            LabError: there is none for this layer.
        """
        return self

    def smallest_keep_in(self, stage: Stage) -> float:
        """`smallest_keep` in one of its stages."""
        return self.smallest_keep

    def reachable_keep(self, keep: int, grid: tuple[int, int]) -> int:
        """The number of patches nearest to `keep` that this method can leave of an image of `grid` patches."""
        return keep

    def counts(self, stage: Stage, steps: int, before: int, after: int) -> list[int]:
        """Tokens left after each of `steps` layers of a stage, on the way from `before` to `after`.

        Equally many go at every layer, as far as `smallest_keep` allows; a method with another split overrides this.
        """
        out = [before - round((before - after) * (i + 1) / steps) for i in range(steps)]
        for i in range(steps - 1, 0, -1):
            if least := self.smallest_keep_in(stage):
                out[i - 1] = min(out[i - 1], floor(out[i] / least))
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
