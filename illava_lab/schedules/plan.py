"""Which layers reduce, and to how many: the plan that a model is attached with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from illava_lab.errors import LabError, hosting
from illava_lab.method.keep import Keep, check_keep, kept
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import STAGES, Stage
from illava_lab.models.anatomy import Anatomy
from illava_lab.models.layout import Layout


@dataclass(frozen=True, repr=False)
class Plan:
    """Layer -> how much to keep, for the image encoder and for the LLM; and how much of the picture goes in at all.

    A float in (0, 1] is the fraction kept of the visual tokens that enter the layer, an int is the number kept
    (in the LLM of each image or video, in the encoder of each of its crops or frames; CLS, text and newlines do not
    count). Encoder layer i reduces inside layer i, after its attention. LLM layer K reduces before layer K, scored by
    the attention of layer K-1 (before layer 0 there is none). `image` is the same for the patches of the picture,
    before the encoder (strategy "downsample"); None leaves the picture as it is. A plan cannot be changed, and can be
    a key of a dict.

    Raises:
        LabError: a layer that is no whole number, or a keep that is neither a fraction in (0, 1] nor a count >= 1.
    """

    encoder: Mapping[int, Keep] = field(default_factory=dict)
    llm: Mapping[int, Keep] = field(default_factory=dict)
    image: Keep | None = None

    def __post_init__(self) -> None:
        for stage in ("encoder", "llm"):
            plan = getattr(self, stage)
            if not isinstance(plan, Mapping):
                raise LabError(f"schedule {stage} must map layers to what they keep, such as {{2: 0.5}}, got {plan!r}")
            for layer, keep in plan.items():
                if isinstance(layer, bool) or not isinstance(layer, int):
                    raise LabError(f"schedule {stage}: layers are whole numbers, got {layer!r}")
                check_keep(keep, f"schedule {stage} layer {layer}: keep")
            object.__setattr__(self, stage, MappingProxyType(dict(sorted(plan.items()))))
        if self.image is not None:
            check_keep(self.image, "schedule image: keep")

    def __hash__(self) -> int:
        return hash((*self.encoder.items(), "llm", *self.llm.items(), self.image))

    def __repr__(self) -> str:
        image = "" if self.image is None else f", image={self.image!r}"
        return f"{type(self).__name__}(encoder={dict(self.encoder)}, llm={dict(self.llm)}{image})"

    def __str__(self) -> str:
        parts = [f"image {self.image}"] if self.image is not None else []
        for stage in ("encoder", "llm"):
            if plan := getattr(self, stage):
                parts.append(f"{stage} " + ", ".join(f"{layer}: {keep}" for layer, keep in plan.items()))
        return "; ".join(parts) or "keeps everything"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self.encoder), dict(self.llm), self.image)

    @property
    def reduces(self) -> bool:
        """Whether any layer, or the picture, is reduced at all."""
        return bool(self.encoder or self.llm) or self.image is not None

    def plan(self, stage: Stage) -> dict[int, Keep]:
        """Layer -> keep of one stage, in the order of the layers. The image stage is a single layer, 0."""
        if stage == "image":
            return {} if self.image is None else {0: self.image}
        return dict(getattr(self, stage))

    def check(self, anatomy: Anatomy, strategy: Strategy) -> None:
        """Refuse what a model or a strategy cannot do, before anything is attached.

        Raises:
            LabError: a layer out of range, a count that is above what is there or that the strategy cannot reach, or
                a stage that the strategy does not serve.
        """
        with hosting(f"strategy {strategy.name!r}"):
            self._check(anatomy, strategy)

    def _check(self, anatomy: Anatomy, strategy: Strategy) -> None:
        for stage in STAGES:
            plan = self.plan(stage)
            if plan and stage not in strategy.stages:
                serves = " and ".join(strategy.stages) or "no stage"
                raise LabError(f"strategy {strategy.name!r} serves {serves}; the schedule asks for the {stage} stage")
            if stage == "image":
                continue
            last = anatomy.depth(stage) - 1
            for layer in plan:
                first = max(anatomy.first_llm_layer, strategy.first_llm_layer) if stage == "llm" else 0
                if not first <= layer <= last:
                    raise LabError(f"{stage} layer {layer} is out of range; this model allows {first} to {last}")
                own = strategy.at(stage, layer)
                if stage == "llm" and layer not in (places := anatomy.llm_places(own.first_llm_layer)):
                    allowed = ", ".join(map(str, places)) or "none"
                    raise LabError(
                        f"llm layer {layer} is behind layer {layer - 1}, which has linear attention: nothing that "
                        f"strategy {own.name!r} could rank by; layers that it may reduce before: {allowed}"
                    )
                if stage == "llm" and not set(own.media) & set(anatomy.media):
                    what = f"{own.media[0]}s, which this model does not take, or takes as pictures"
                    raise LabError(f"strategy {own.name!r} reduces {what}")
        looks = strategy.looks(anatomy.encoder_depth) if self.encoder else []
        if looks and min(self.encoder) < min(looks):
            raise LabError(
                f"strategy {strategy.name!r} takes notes at encoder layer {min(looks)}, by which it reduces there and "
                f"later; the schedule asks for encoder layer {min(self.encoder)}"
            )
        if strategy.own_count and self.encoder and not anatomy.rows_may_differ:
            raise LabError(
                f"strategy {strategy.name!r} lets pictures decide how many of their tokens stay, which this tower "
                "cannot do; choose a setting by which the schedule decides"
            )
        if self.image is not None and anatomy.cells is not None:
            raise LabError("this model takes images of any size: to down-sample, let its processor make fewer pixels")
        # How many tokens an image has may depend on the image; a count is then checked when it gets there.
        known = self if anatomy.fixed else replace(self, llm={}, encoder={} if anatomy.cells else self.encoder)
        wanted = known.tokens(anatomy)["image"][-1]
        nearest = strategy.reachable_keep(wanted, anatomy.grid)
        if self.image is not None and nearest != wanted:
            raise LabError(
                f"{strategy.name} cannot make {wanted} of {anatomy.patches} patches; the nearest is {nearest}"
            )

    def tokens(
        self, anatomy: Anatomy, layout: Layout | None = None, entered: int | None = None
    ) -> dict[Stage, list[int]]:
        """Visual tokens of one image that enter each layer of a stage; the count that leaves the stage comes last.

        Args:
            layout: what the image is made of (`Trace.layout`); None for one of as many tokens as a crop has patches.
                Where padding is cut off, tokens that survive in it are lost to the LLM; they are expected to be as
                many there as elsewhere.
            entered: how many tokens the encoder left to the LLM, where it is known (`Trace.entered`).

        Raises:
            LabError: a count above what is there.
        """
        rows, height, width = (1, *anatomy.grid) if layout is None else layout.patches
        count, per_row, out = height * width, height * width, {}
        for stage in STAGES:
            plan, row = self.plan(stage), []
            if stage == "llm" and layout is not None:
                count = layout.left(count / per_row) if entered is None else entered
            for layer in range(1 if stage == "image" else anatomy.depth(stage)):
                if stage == "llm" and layer in plan:
                    count = kept(plan[layer], count, f"llm layer {layer}")
                row.append(count)
                if stage != "llm" and layer in plan:
                    count = kept(plan[layer], count, f"{stage} layer {layer}")
            out[stage] = [*row, count] if stage == "llm" else [n * rows for n in (*row, count)]
        return out
