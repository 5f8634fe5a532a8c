"""One fault each: what people get wrong, and the promise of `illava_lab.testing` that it breaks."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

import illava_lab as il
from illava_lab.method.ranking import ranking

BROKEN: dict[str, type[il.Strategy]] = {}  # promise -> a strategy that breaks it, and no other


def breaks(promise: str):
    def add(cls: type[il.Strategy]) -> type[il.Strategy]:
        BROKEN[promise] = cls
        return cls

    return add


class Sound(il.Strategy):
    """The largest norms are kept, and nothing is wrong with it; those below change one thing."""

    name = "sound"

    def map(self, tokens: il.Tokens, keep: int) -> il.TokenMap:
        if keep == tokens.count:
            return il.TokenMap.identity(tokens)
        order = self.order(tokens, keep)
        return self.reduce(tokens, order[:, :keep].sort(dim=1).values, order[:, keep:])

    def order(self, tokens: il.Tokens, keep: int) -> Tensor:
        return ranking(self.score(tokens), tokens)

    def score(self, tokens: il.Tokens) -> Tensor:
        return tokens.hidden.float().norm(dim=2)

    def reduce(self, tokens: il.Tokens, anchor: Tensor, dropped: Tensor) -> il.TokenMap:
        return il.TokenMap.keep(anchor, tokens.count)


def into_last(tokens: il.Tokens, anchor: Tensor, dropped: Tensor, own: float, other: float) -> il.TokenMap:
    """The first dropped token joins the last slot that is not protected, with these weights."""
    free = (~tokens.protected.gather(1, anchor)).long() * torch.arange(1, anchor.shape[1] + 1)
    slot = free.argmax(dim=1, keepdim=True)
    merges = (free.amax(dim=1, keepdim=True) > 0).float()  # not where only protected tokens are kept
    weight = torch.ones(anchor.shape).scatter(1, slot, own * merges + (1 - merges))
    return il.TokenMap(anchor, tokens.count, weight, slot, dropped[:, :1], other * merges)


@breaks("metadata")
class NoDocstring(Sound):
    pass


@breaks("settings_validated")
class AcceptsAnything(Sound):
    """A setting that nobody looks at."""

    mode: str = "norm"


@breaks("repr_round_trips")
class HidesSettings(Sound):
    """A repr without the settings."""

    power: float = 1.0

    def __repr__(self) -> str:
        return "HidesSettings()"


@breaks("instances_independent")
class SharesSettings(Sound):
    """The newest instance decides for all."""

    power: float = 1.0
    newest: ClassVar[list[float]] = []

    def __post_init__(self) -> None:
        type(self).newest[:] = [self.power]

    def score(self, tokens: il.Tokens) -> Tensor:
        return super().score(tokens) * (1 if self.newest == [1.0] else -1)


@breaks("statistics_exist")
class CLSInTheLLM(Sound):
    """The LLM has no CLS token."""

    stages = ("encoder", "llm")

    def score(self, tokens: il.Tokens) -> Tensor:
        return super().score(tokens) if tokens.stage == "encoder" else tokens.cls_attention


@breaks("maps_every_case")
class OnlyPairs(Sound):
    """An odd number of tokens has no pairs."""

    def score(self, tokens: il.Tokens) -> Tensor:
        return super().score(tokens).view(tokens.batch, tokens.count // 2, 2).flatten(1)


@breaks("count_kept")
class OneMore(Sound):
    """CLS besides, although `keep` counts it."""

    def map(self, tokens: il.Tokens, keep: int) -> il.TokenMap:
        return super().map(tokens, min(keep + 1, tokens.count))


@breaks("anchors_unique")
class SamePlaceTwice(Sound):
    """Two slots in one place."""

    def reduce(self, tokens: il.Tokens, anchor: Tensor, dropped: Tensor) -> il.TokenMap:
        free = ~tokens.protected.gather(1, anchor)
        other = (free & ~free.roll(1, 1)).long().argmax(dim=1, keepdim=True)  # the first that is not protected
        return il.TokenMap.keep(torch.where(free, anchor.gather(1, other), anchor), tokens.count)


@breaks("sources_exist")
class FlatIndices(Sound):
    """Sources counted through the whole batch."""

    def reduce(self, tokens: il.Tokens, anchor: Tensor, dropped: Tensor) -> il.TokenMap:
        out = into_last(tokens, anchor, dropped, 0.5, 0.5)
        source = out.source + tokens.count * torch.arange(tokens.batch)[:, None]
        return il.TokenMap(anchor, tokens.count, out.self_weight, out.slot, source, out.weight)


@breaks("weights_finite")
class Subtracts(Sound):
    """A negative weight."""

    def reduce(self, tokens: il.Tokens, anchor: Tensor, dropped: Tensor) -> il.TokenMap:
        return into_last(tokens, anchor, dropped, 1.5, -0.5)


@breaks("rows_sum_to_one")
class Adds(Sound):
    """A sum where the class says average."""

    def reduce(self, tokens: il.Tokens, anchor: Tensor, dropped: Tensor) -> il.TokenMap:
        return into_last(tokens, anchor, dropped, 1.0, 1.0)


@breaks("protected_survive")
class FirstIsCLS(Sound):
    """Protects what is in front, wherever the protected tokens are."""

    def order(self, tokens: il.Tokens, keep: int) -> Tensor:
        score = self.score(tokens).nan_to_num(-torch.inf)
        front = torch.arange(tokens.count) < int(tokens.has_protected)
        return score.masked_fill(front, torch.inf).argsort(dim=1, descending=True, stable=True)


@breaks("keep_everything")
class FallingScore(Sound):
    """Slots in the order of scores, also where nothing is removed."""

    def map(self, tokens: il.Tokens, keep: int) -> il.TokenMap:
        return il.TokenMap.keep(self.order(tokens, keep)[:, :keep], tokens.count)


@breaks("one_token")
class SecondLargest(Sound):
    """There is not always a second token."""

    def map(self, tokens: il.Tokens, keep: int) -> il.TokenMap:
        patches = self.score(tokens)[:, tokens.protected_count :]
        patches.topk(2, dim=1)
        return super().map(tokens, keep)


@breaks("keep_one")
class EvenSteps(Sound):
    """From the first to the last token in equal steps."""

    def order(self, tokens: il.Tokens, keep: int) -> Tensor:
        step = (tokens.count - 1) / (keep - 1 - tokens.protected_count)
        return ranking(torch.arange(tokens.count).remainder(step).expand(tokens.batch, -1), tokens)


@breaks("ties")
class Threshold(Sound):
    """All tokens above the score of the last one kept, and that one."""

    def map(self, tokens: il.Tokens, keep: int) -> il.TokenMap:
        score = self.score(tokens).nan_to_num(-torch.inf).masked_fill(tokens.protected, torch.inf)
        last = score.sort(dim=1, descending=True).values[:, keep - 1 : keep]
        if bool(torch.isinf(last).any()):
            return super().map(tokens, keep)
        return il.TokenMap.keep((score >= last).nonzero()[:, 1].view(tokens.batch, keep), tokens.count)


@breaks("nan_survived")
class SortsNaNFirst(Sound):
    """Sorting takes NaN for the largest number."""

    kind = "prune"

    def order(self, tokens: il.Tokens, keep: int) -> Tensor:
        score = self.score(tokens).masked_fill(tokens.protected, 1e9)
        return score.argsort(dim=1, descending=True, stable=True)


@breaks("batch_equals_single")
class BatchMean(Sound):
    """Scores relative to the batch."""

    def score(self, tokens: il.Tokens) -> Tensor:
        return super().score(tokens) - super().score(tokens).mean(dim=0)


@breaks("batch_permutes")  # and batch_equals_single: what depends on a row's number is another thing alone
class RowNumber(Sound):
    """The odd rows keep the smallest."""

    def score(self, tokens: il.Tokens) -> Tensor:
        return super().score(tokens) * (1 - 2 * (torch.arange(tokens.batch)[:, None] % 2))


@breaks("dtype_and_device_kept")
class ForgetsDtype(Sound):
    """A map of its own kind."""

    class Map(il.TokenMap):
        def apply(self, x: Tensor) -> Tensor:
            return super().apply(x.float())

    def reduce(self, tokens: il.Tokens, anchor: Tensor, dropped: Tensor) -> il.TokenMap:
        return self.Map(anchor, tokens.count)


@breaks("bfloat16_works")
class ThroughNumpy(Sound):
    """numpy has no bfloat16."""

    def score(self, tokens: il.Tokens) -> Tensor:
        return torch.from_numpy((tokens.hidden.numpy().astype("float32") ** 2).sum(axis=2))


@breaks("deterministic")
class GlobalRandom(Sound):
    """Draws without a seed of its own."""

    def score(self, tokens: il.Tokens) -> Tensor:
        return torch.rand(tokens.count).expand(tokens.batch, -1)


@breaks("inputs_unchanged")
class InPlace(Sound):
    """Normalises the tokens of the model."""

    def score(self, tokens: il.Tokens) -> Tensor:
        return tokens.hidden.sub_(1).float().norm(dim=2)


@breaks("memory_as_declared")
class AllPairs(Sound):
    """Compares all with all, without saying so."""

    def score(self, tokens: il.Tokens) -> Tensor:
        x = tokens.hidden.float()
        return (x @ x.mT).diagonal(dim1=1, dim2=2)
