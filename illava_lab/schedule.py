"""Schedules: at which layers a model reduces its visual tokens, and to how many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any, NamedTuple

from torch import nn

from illava_lab.errors import LabError
from illava_lab.families import Anatomy, describe
from illava_lab.registry import make_strategy
from illava_lab.strategy import STAGES, Stage, Strategy

Keep = float | int


class Preset(NamedTuple):
    """A setting that a paper published, and the depths and token count of the model it was published for."""

    encoder: dict[int, int]
    llm: dict[int, float]
    encoder_depth: int
    llm_depth: int
    patches: int
    source: str


# iLLaVA removes R=92 of 729 tokens in each of four SigLIP layers, then merges once in the LLM.
PRESETS: dict[str, Preset] = {
    "illava-image": Preset(
        {5: 637, 6: 545, 7: 453, 8: 361}, {8: 0.70}, 26, 28, 729,
        "iLLaVA (arXiv 2412.06263), code release 1: LLaVA-OneVision-7B, single image",
    ),
    "illava-video": Preset(
        {3: 637, 4: 545, 5: 453, 6: 361}, {2: 0.70}, 26, 28, 729,
        "iLLaVA (arXiv 2412.06263), code release 1: LLaVA-OneVision-7B, video of 32 frames",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """Layer -> how much to keep, for the image encoder and for the LLM.

    A float in (0, 1] is the fraction kept of the visual tokens that enter the layer, an int is the number kept
    (always per image; CLS and text do not count). Encoder layer i reduces inside
    layer i, after its attention. LLM layer K reduces before layer K, scored by the attention of layer K-1.

    Raises:
        LabError: a layer that is no whole number, or a keep that is neither a fraction in (0, 1] nor a count >= 1.
    """

    encoder: Mapping[int, Keep] = field(default_factory=dict)
    llm: Mapping[int, Keep] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for stage in STAGES:
            plan = getattr(self, stage)
            for layer, keep in plan.items():
                if isinstance(layer, bool) or not isinstance(layer, int):
                    raise LabError(f"schedule {stage}: layers are whole numbers, got {layer!r}")
                check_keep(keep, f"schedule {stage} layer {layer}: keep")
            object.__setattr__(self, stage, dict(sorted(plan.items())))

    def plan(self, stage: Stage) -> dict[int, Keep]:
        """Layer -> keep of one stage, in the order of the layers."""
        return dict(getattr(self, stage))

    def check(self, anatomy: Anatomy, strategy: Strategy) -> None:
        """Refuse what a model or a strategy cannot do, before anything is attached.

        Raises:
            LabError: a layer out of range, a count above what is there, or a stage that the strategy does not serve.
        """
        first = {"encoder": 0, "llm": 1}
        for stage in STAGES:
            plan = self.plan(stage)
            if plan and stage not in strategy.stages:
                serves = " and ".join(strategy.stages) or "no stage"
                raise LabError(f"strategy {strategy.name!r} serves {serves}; the schedule asks for the {stage} stage")
            last = anatomy.depth(stage) - 1
            for layer in plan:
                if not first[stage] <= layer <= last:
                    raise LabError(f"{stage} layer {layer} is out of range; this model allows {first[stage]} to {last}")
        if anatomy.grid is not None:  # else a count is checked when the size of an image is known
            self.tokens(anatomy)

    def tokens(self, anatomy: Anatomy) -> dict[Stage, list[int]]:
        """Visual tokens of one image that enter each layer of a stage; the count that leaves the stage comes last.

        Raises:
            LabError: a count above what is there.
        """
        count, out = anatomy.patches, {}
        for stage in STAGES:
            plan, row = self.plan(stage), []
            for layer in range(anatomy.depth(stage)):
                if stage == "llm" and layer in plan:
                    count = kept(plan[layer], count, f"llm layer {layer}")
                row.append(count)
                if stage == "encoder" and layer in plan:
                    count = kept(plan[layer], count, f"encoder layer {layer}")
            out[stage] = [*row, count]
        return out

    @staticmethod
    def preset(name: str, model: nn.Module) -> Schedule:
        """A paper's setting. Exact on the model it was published for; elsewhere the same fractions at the same depths.

        Raises:
            LabError: no such preset.
        """
        if name not in PRESETS:
            raise LabError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        preset, anatomy = PRESETS[name], describe(model)
        same = (preset.encoder_depth, preset.llm_depth, preset.patches) == (
            anatomy.encoder_depth, len(anatomy.llm_layers), anatomy.patches,
        )  # fmt: skip
        if same:
            return Schedule(encoder=preset.encoder, llm=preset.llm)
        before, fractions = preset.patches, []
        for count in preset.encoder.values():
            fractions.append(count / before)
            before = count
        encoder = _scaled(list(preset.encoder), preset.encoder_depth, anatomy.encoder_depth, first=0)
        llm = _scaled(list(preset.llm), preset.llm_depth, len(anatomy.llm_layers), first=1)
        return Schedule(
            encoder=dict(zip(encoder, fractions, strict=True)), llm=dict(zip(llm, preset.llm.values(), strict=True))
        )

    @staticmethod
    def for_budget(
        strategy: str | Strategy | type[Strategy], model: nn.Module, *, keep: float, stages: tuple[Stage, ...] = STAGES
    ) -> Schedule:
        """The schedule by which a strategy, at the layers it stands for, ends with `keep` of the visual tokens.

        `keep` is the fraction of an image's visual tokens that the last LLM layer sees. A method of both stages
        shares the reduction as iLLaVA's image preset does (its encoder leaves 361 of 729, its LLM 0.70 of those);
        within a stage every layer removes equally many tokens.

        Args:
            stages: leave one out to keep a method of both stages to one.

        Raises:
            LabError: keep outside (0, 1], or a strategy with no stage left.
        """
        strategy = make_strategy(strategy)
        if isinstance(keep, bool) or not isinstance(keep, (int, float)) or not 0 < keep <= 1:
            raise LabError(f"keep must be a fraction in (0, 1], got {keep!r}")
        if strategy.kind == "none" or keep == 1:
            return Schedule()
        anatomy = describe(model)
        serves = [stage for stage in STAGES if stage in strategy.stages and stage in stages]
        if not serves:
            raise LabError(f"strategy {strategy.name!r} serves {strategy.stages}, not {stages}")
        final = max(1, round(anatomy.patches * keep))
        between = final if serves == ["encoder"] else anatomy.patches
        if len(serves) == 2:
            between = max(final, round(anatomy.patches * keep**ENCODER_SHARE))
        encoder, llm = {}, {}
        if "encoder" in serves:
            encoder = _even(strategy, strategy.layers("encoder", anatomy.encoder_depth), anatomy.patches, between)
        if "llm" in serves:
            llm = _even(strategy, strategy.layers("llm", len(anatomy.llm_layers)), between, final)
        return Schedule(encoder=encoder, llm=llm)


# log(361/729) / log(361/729 * 0.70): the part of iLLaVA's image preset that its encoder does.
ENCODER_SHARE = 0.6633


def check_keep(keep: Any, what: str) -> None:
    """Raise LabError unless keep is a fraction in (0, 1] (float) or a count >= 1 (int)."""
    is_count = isinstance(keep, int) and not isinstance(keep, bool)
    if not (is_count and keep >= 1) and not (isinstance(keep, float) and 0 < keep <= 1):
        raise LabError(f"{what} must be a fraction in (0, 1] or a count of at least 1, got {keep!r}")


def kept(keep: Keep, count: int, where: str) -> int:
    """How many of `count` visual tokens are kept: iLLaVA's rule, count - round(count * (1 - keep)), at least 1.

    Raises:
        LabError: a count above what is there.
    """
    if isinstance(keep, int):
        if keep > count:
            raise LabError(f"{where}: cannot keep {keep} of {count} visual tokens")
        return keep
    return max(1, count - round(count * (1 - keep)))


def _even(strategy: Strategy, layers: list[int], before: int, after: int) -> dict[int, int]:
    """Counts after each layer, every layer removing equally many as far as the strategy can.

    Raises:
        LabError: even removing all it can at every layer, the strategy keeps more.
    """
    steps = len(layers)
    counts = [before - round((before - after) * (i + 1) / steps) for i in range(steps)]
    for i in range(steps - 1, 0, -1):
        if strategy.smallest_keep:
            counts[i - 1] = min(counts[i - 1], floor(counts[i] / strategy.smallest_keep))
    least = ceil(before * strategy.smallest_keep)
    if counts[0] < least:
        for _ in layers[1:]:
            least = ceil(least * strategy.smallest_keep)
        raise LabError(f"{strategy.name} cannot go from {before} to {after} tokens in {steps} layers; it keeps at least {least}")
    return dict(zip(layers, counts, strict=True))


def _scaled(layers: list[int], depth: int, new_depth: int, first: int) -> list[int]:
    """The same relative depths in another model, distinct and in range.

    Raises:
        LabError: the model has too few layers.
    """
    out: list[int] = []
    for layer in layers:
        out.append(max(first, round(layer / depth * new_depth), out[-1] + 1 if out else first))
    if out and out[-1] >= new_depth:
        out = [layer - (out[-1] - new_depth + 1) for layer in out]
    if out and out[0] < first:
        raise LabError(f"the preset needs {len(layers)} layers, this model has {new_depth}")
    return out
