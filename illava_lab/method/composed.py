"""A strategy made of several: one in the encoder and another in the LLM, or at each layer another."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from torch import Tensor

from illava_lab.errors import LabError, one_of
from illava_lab.method.by_frame import count_by_frame, map_by_frame
from illava_lab.method.keep import Keep
from illava_lab.method.strategy import Strategy
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Medium, Stage, Tokens

# One for all layers of a stage, or pairs of a layer and its strategy; None where nothing is reduced.
Part = Strategy | tuple[tuple[int, Strategy], ...] | None
STAGES: tuple[Stage, ...] = ("encoder", "llm")


class Composed(Strategy):
    """Several strategies, each asked in its stage, or at its layers; `illava_lab.compose` makes one.

    Args:
        encoder, llm: the strategy of a stage, or layer -> strategy; None where nothing is reduced.
        frames: in the LLM the frames of a video are reduced "together", or "each" on its own.
    """

    name = "composed"

    encoder: Any = None
    llm: Any = None
    frames: str = "together"

    def __post_init__(self) -> None:
        for stage in STAGES:
            object.__setattr__(self, stage, _checked(stage, getattr(self, stage)))
        if not self.parts:
            raise LabError("compose needs a strategy for encoder, for llm, or for both")
        one_of("frames", self.frames, ("together", "each"))
        if self.frames == "each":
            self._refuse_unequal_frames()
        noting = {part.label: part for part in self._of("encoder") if _notes(part)}
        if len(noting) > 1:
            raise LabError(f"compose: {' and '.join(noting)} both take notes in the encoder, and only one of them can")

    def _refuse_unequal_frames(self) -> None:
        for stage, _, part in self.placed:
            if part.own_count or (stage == "llm" and part.media == ("video",)):
                raise LabError(f"compose: frames='each' leaves each frame as many tokens, which {part.label} does not")

    # ---- what it is made of
    def _part(self, stage: Stage) -> Part:
        part: Part = getattr(self, stage, None)
        return part

    @property
    def placed(self) -> list[tuple[Stage, int | None, Strategy]]:
        """Stage, layer (None where it is asked at all of them) and strategy of each part."""
        out: list[tuple[Stage, int | None, Strategy]] = []
        for stage in STAGES:
            part = self._part(stage)
            pairs = ((None, part),) if isinstance(part, Strategy) else part or ()
            out += [(stage, layer, own) for layer, own in pairs]
        return out

    def _of(self, stage: Stage) -> list[Strategy]:
        return [own for there, _, own in self.placed if there == stage]

    @property
    def parts(self) -> list[Strategy]:
        """All strategies in it, those of the encoder first."""
        return [own for _, _, own in self.placed]

    def at(self, stage: Stage, layer: int) -> Strategy:
        part = self._part(stage)
        if isinstance(part, Strategy):
            return part
        found = dict(part or ())
        if layer not in found:
            there = ", ".join(map(str, found)) or "none"
            raise LabError(f"{self.label} has no strategy for {stage} layer {layer}; layers that have one: {there}")
        return found[layer]

    @property
    def label(self) -> str:
        """The labels of its parts: ``tome + fastv``, or ``fastv at 2, pyramiddrop at 16`` where layers differ."""
        text = " + ".join(_label(part) for part in map(self._part, STAGES) if part is not None)
        return f"{text}, frame by frame" if self.frames == "each" else text

    def __repr__(self) -> str:
        given = ((f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default)
        inside = [f"{name}={dict(part) if isinstance(part, tuple) else part!r}" for name, part in given]
        return f"{type(self).__name__}({', '.join(inside)})"

    # ---- what its parts say of themselves
    @property
    def stages(self) -> tuple[Stage, ...]:  # type: ignore[override]
        return tuple(stage for stage in STAGES if self._of(stage))

    @property
    def kind(self) -> Literal["none", "prune", "merge", "pool"]:  # type: ignore[override]
        kinds = [part.kind for part in self.parts]
        return "merge" if "merge" in kinds else max(kinds, key=["none", "prune", "pool"].index)

    @property
    def first_llm_layer(self) -> int:  # type: ignore[override]
        part = self._part("llm")
        if isinstance(part, Strategy):
            return part.first_llm_layer
        return min((layer for layer, _ in part or ()), default=1)

    @property
    def media(self) -> tuple[Medium, ...]:  # type: ignore[override]
        taken = [medium for part in self._of("llm") for medium in part.media]
        return tuple(dict.fromkeys(taken)) or Strategy.media

    @property
    def smallest_keep(self) -> float:  # type: ignore[override]
        return max(part.smallest_keep for part in self.parts)

    def smallest_keep_in(self, stage: Stage) -> float:
        return max((part.smallest_keep_in(stage) for part in self._of(stage)), default=0.0)

    @property
    def proportional_attention(self) -> bool:  # type: ignore[override]
        return any(part.proportional_attention for part in self._of("encoder"))

    @property
    def proportional_in_llm(self) -> bool:  # type: ignore[override]
        return any(part.proportional_in_llm for part in self.parts)

    @property
    def averages(self) -> bool:  # type: ignore[override]
        return all(part.averages for part in self.parts)

    @property
    def own_count(self) -> bool:  # type: ignore[override]
        return self.frames == "each" or any(part.own_count for part in self.parts)

    @property
    def memory(self) -> Literal["linear", "quadratic"]:  # type: ignore[override]
        return "quadratic" if any(part.memory == "quadratic" for part in self.parts) else "linear"

    # ---- what they do
    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        own = self.at(tokens.stage, tokens.layer)
        if self.frames == "each" and tokens.frames is not None:
            return map_by_frame(own, tokens, keep)
        return own.map(tokens, keep)

    def count(self, tokens: Tokens, keep: Keep) -> Tensor | None:
        if self.frames == "each" and tokens.frames is not None:
            return count_by_frame(tokens, keep)
        own = self.at(tokens.stage, tokens.layer)
        return own.count(tokens, keep) if own.own_count else None

    def looks(self, depth: int) -> list[int]:
        return next((part.looks(depth) for part in self._of("encoder") if _notes(part)), [])

    def note(self, tokens: Tokens, noted: Tensor | None) -> Tensor:
        return next(part.note(tokens, noted) for part in self._of("encoder") if _notes(part))

    def layers(self, stage: Stage, depth: int) -> list[int]:
        part = self._part(stage)
        return part.layers(stage, depth) if isinstance(part, Strategy) else [layer for layer, _ in part or ()]

    def counts(self, stage: Stage, steps: int, before: int, after: int) -> list[int]:
        part = self._part(stage)
        if isinstance(part, Strategy):
            return part.counts(stage, steps, before, after)
        return super().counts(stage, steps, before, after)


def _notes(part: Strategy) -> bool:
    return type(part).note is not Strategy.note


def _checked(stage: Stage, given: Any) -> Part:
    """One strategy, or pairs in the order of layers."""
    if given is None or isinstance(given, Strategy):
        return None if given is None else _serving(stage, given)
    pairs = dict(given)
    if not pairs:
        raise LabError(f"compose: {stage} must name a strategy for one layer at least, got {given!r}")
    for layer, own in pairs.items():
        if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
            raise LabError(f"compose: layers of {stage} are whole numbers of at least 0, got {layer!r}")
        if stage == "llm" and layer < _serving(stage, own).first_llm_layer:
            raise LabError(
                f"compose: {own.label} can reduce from llm layer {own.first_llm_layer} on, got layer {layer}"
            )
    return tuple((layer, _serving(stage, pairs[layer])) for layer in sorted(pairs))


def _serving(stage: Stage, own: Strategy) -> Strategy:
    if isinstance(own, Composed):
        raise LabError(f"compose: {stage} must be one strategy or layer -> strategy, got what is composed: {own.label}")
    if stage not in own.stages:
        serves = " and ".join(own.stages) or "no stage"
        raise LabError(f"compose: {own.label} serves {serves}, not {stage}")
    return own


def _label(part: Strategy | tuple[tuple[int, Strategy], ...]) -> str:
    if isinstance(part, Strategy):
        return part.label
    return ", ".join(f"{own.label} at {layer}" for layer, own in part)
