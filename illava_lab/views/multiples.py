"""Small multiples: a row of pictures for each method, a column for each place at which one of them reduces."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from illava_lab.errors import LabError
from illava_lab.models.images import ImageLike
from illava_lab.session.answer import Answer
from illava_lab.session.lab import Lab
from illava_lab.trace.trace import Trace
from illava_lab.views.pictures import seen_image, token_picture
from illava_lab.views.words import as_label

SIZE = 1.3  # inches of each picture
NAMES = {"encoder": "encoder", "llm": "LLM"}
Place = tuple[str, int]  # stage and layer


def layers_figure(lab: Lab, image: ImageLike, answers: Mapping[str, Answer], columns: int = 6) -> Figure:
    """The tokens of one image under several methods, layer by layer, all at once.

    Every picture is drawn as `token_picture` does, with the number of tokens above it. A method that does nothing at a
    place is pale there: its tokens are those of the picture to the left.

    Args:
        answers: label -> what `Lab.ask` returned about this image, each with another method.
        columns: at most so many places, evenly chosen among those where a method reduces, the last of them always.

    Raises:
        LabError: no answers, fewer than one column, or no method that reduces anything.
    """
    if not answers:
        raise LabError("answers must hold at least one answer with its label, got none")
    if columns < 1:
        raise LabError(f"columns must be 1 or more, got {columns!r}")
    traces = {label: answer.trace for label, answer in answers.items()}
    places = _thinned(_places(traces), columns)
    if not places:
        raise LabError(f"answers must hold one of a method that reduces, got {', '.join(map(repr, answers))}")
    seen = seen_image(lab, image)
    figure = Figure(figsize=(SIZE * (len(places) + 0.35), (SIZE + 0.2) * len(traces) + 0.3), layout="constrained")
    drawn = figure.subplots(len(traces), len(places), squeeze=False)
    for number, (label, trace) in enumerate(traces.items()):
        axes = drawn[number]
        axes[0].text(-0.08, 0.5, as_label(label), rotation=90, ha="right", va="center", transform=axes[0].transAxes)
        before = 0
        for axis, place in zip(axes, places, strict=True):
            steps = sum(_order((step.stage, step.layer)) <= _order(place) for step in trace.steps)
            sources = trace.sources(0, steps).crop(0)
            picture = token_picture(seen, sources)
            if steps == before:
                picture = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.55)
            axis.imshow(picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS))
            where = f"{NAMES[place[0]]} {place[1]}\n" if not number else ""
            axis.set_title(f"{where}{len(sources.anchor)}", fontsize=9)
            axis.set_axis_off()
            before = steps
    return figure


def layers_words(answers: Mapping[str, Answer]) -> str:
    """What the figure shows, in a sentence: the tokens that each method leaves, and its answer."""
    left = (f"{label} {len(one.trace.sources(0).anchor)} tokens, “{one.text}”" for label, one in answers.items())
    return f"Tokens after every layer that reduces; at the end {'; '.join(left)}"


def _places(traces: Mapping[str, Trace]) -> list[Place]:
    """Where any of them reduces, in the order in which the image comes there."""
    return sorted({(step.stage, step.layer) for trace in traces.values() for step in trace.steps}, key=_order)


def _order(place: Place) -> tuple[bool, int]:
    return place[0] == "llm", place[1]


def _thinned(places: list[Place], most: int) -> list[Place]:
    if len(places) <= most:
        return places
    return [places[i] for i in np.linspace(len(places) - 1, 0, most).round().astype(int)[::-1]]
