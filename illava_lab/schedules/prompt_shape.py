"""How long a prompt is at each layer under a schedule: what the FLOPs of a prefill are computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from illava_lab.method.keep import Keep
from illava_lab.method.tokens import Stage
from illava_lab.models.anatomy import Anatomy
from illava_lab.models.layout import Layout
from illava_lab.schedules.plan import Plan
from illava_lab.trace.trace import Trace


class ImageShape(NamedTuple):
    """One image or video.

    Attributes:
        rows: crops, frames or temporal slices, each an attention of its own in the encoder.
        grid: (height, width) of a row, in what a schedule counts: patches, or cells in a packed tower.
        encoder: what is left of a row on entering each encoder layer; one entry more, for what leaves the last.
        entered: visual tokens that enter the LLM.
        llm: visual tokens in each layer of the LLM.
        one_grid: `grid` where the whole of it is one in raster order, else None.
        markers: placeholders that are no visual tokens.
        places: gives what each row has left in front of an encoder layer (`Trace.places`), or None if unknown.
        pooled: tokens that the projector sees, where patches are pooled before it; else None.
    """

    rows: int
    grid: tuple[int, int]
    encoder: list[int]
    entered: int
    llm: list[int]
    one_grid: tuple[int, int] | None
    markers: int
    places: Callable[[int], list[Tensor]] | None
    pooled: int | None

    def before(self, layer: int) -> int:
        """Visual tokens that a layer of the LLM finds, before it reduces them."""
        return self.llm[layer - 1] if layer else self.entered


@dataclass(frozen=True, eq=False)
class PromptShape:
    """All images and videos of a prompt under a schedule, and the text."""

    anatomy: Anatomy
    plan: dict[Stage, dict[int, Keep]]
    visuals: list[ImageShape]
    text: int

    def length(self, layer: int) -> int:
        """Tokens in a layer of the LLM."""
        return self.text + sum(visual.llm[layer] + visual.markers for visual in self.visuals)

    def length_before(self, layer: int) -> int:
        """Tokens that a layer of the LLM finds, before it reduces them."""
        return self.text + sum(visual.before(layer) + visual.markers for visual in self.visuals)


def prompt_shape(
    anatomy: Anatomy,
    schedule: Plan | None,
    text_tokens: int,
    layouts: Sequence[Layout] | None,
    trace: Trace | None = None,
) -> PromptShape:
    """What a prompt of these images and so much text is under a schedule; arguments as in `prefill_flops`."""
    schedule, visuals = schedule or Plan(), []
    if trace is not None:
        layouts = [trace.layout(image) for image in range(trace.images_per_row[0])]
    for image, layout in enumerate([None] if layouts is None else layouts):
        entered = None if trace is None else trace.entered(image)
        tokens = schedule.tokens(anatomy, layout, entered)
        if entered is None:
            entered = replace(schedule, llm={}).tokens(anatomy, layout)["llm"][0]
        rows, height, width = (1, *anatomy.grid) if layout is None else layout.patches
        one_grid, markers = (anatomy.grid, 0) if layout is None else (layout.grid, layout.slots - layout.tokens)
        encoder = [count // rows for count in tokens["encoder"]]
        # Where the projector takes an earlier layer, the later ones run for nothing.
        encoder += encoder[-1:] * (len(anatomy.encoder_layers) - anatomy.encoder_depth)
        places = None if trace is None else partial(trace.places, image)
        early = layout is not None and layout.interpolates and any(media.early for media in anatomy.media.values())
        pooled = layout.slots if layout is not None and early else None
        visuals.append(
            ImageShape(rows, (height, width), encoder, entered, tokens["llm"], one_grid, markers, places, pooled)
        )
    plans: dict[Stage, dict[int, Keep]] = {"encoder": schedule.plan("encoder"), "llm": schedule.plan("llm")}
    return PromptShape(anatomy, plans, visuals, text_tokens)
