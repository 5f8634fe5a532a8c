"""The way from a picture to an answer, drawn with the numbers of the model at hand."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from illava_lab.models.families import describe
from illava_lab.models.images import ImageLike
from illava_lab.session.lab import Lab
from illava_lab.views.colors import STAGES
from illava_lab.views.pictures import seen_image
from illava_lab.views.words import as_label

INK, PAPER = "#333333", "#f4f4f4"


def pipeline_figure(lab: Lab, image: ImageLike, question: str) -> Figure:
    """Picture, patches, encoder, projector, LLM and answer from left to right, and where tokens can be reduced.

    Raises:
        LabError: as `Lab.ask`.
    """
    anatomy, seen = describe(lab.model), seen_image(lab, image)
    answer = lab.ask(image, question)
    rows, columns = anatomy.grid
    depth = {"encoder": anatomy.encoder_depth, "llm": len(anatomy.llm_layers)}
    figure = Figure(figsize=(10.4, 3.5), layout="constrained")
    axes = figure.add_subplot(xlim=(0, 104), ylim=(0, 35))
    axes.set_axis_off()
    _picture(axes, seen, 1, "picture", f"{seen.width} × {seen.height} pixels")
    _patches(axes, seen, 17, rows, columns)
    _stage(axes, 34, "image encoder", depth["encoder"], STAGES["encoder"], "patches look\nat each other")
    _box(axes, 53, 8, "projector", STAGES["projector"], "")
    _stage(axes, 68, "LLM", depth["llm"], STAGES["llm"], "reads, then writes")
    axes.text(93, 17.5, f"“{as_label(answer.text)}”", fontsize=14, ha="left", va="center", weight="bold", color=INK)
    axes.text(93, 12.5, "answer", fontsize=9, ha="left", color=INK)
    for start, end in ((12.5, 16.5), (29.5, 33.5), (48.5, 52.5), (61.5, 67.5), (84.5, 92)):
        arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.4}
        axes.annotate("", (end, 17.5), (start, 17.5), arrowprops=arrow)
    axes.annotate(
        as_label(f"“{question}”"), (64.5, 17), (64.5, 31.5), ha="center", fontsize=10, color=INK,
        arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1.4},
    )  # fmt: skip
    for middle, text in ((41, "tokens can be\nreduced here"), (76, "... and here")):
        axes.annotate(
            text, (middle, 9.2), (middle, 0.5), ha="center", va="bottom", fontsize=9, color=INK,
            arrowprops={"arrowstyle": "-|>", "color": INK, "linestyle": "--"},
        )  # fmt: skip
    return figure


def _picture(axes: Axes, seen: Image.Image, left: float, name: str, below: str) -> None:
    axes.imshow(seen, extent=(left, left + 11, 12, 23), aspect="auto", zorder=2)
    axes.text(left + 5.5, 24.5, name, ha="center", fontsize=11, color=INK)
    axes.text(left + 5.5, 10.8, below, ha="center", va="top", fontsize=9, color=INK)


def _patches(axes: Axes, seen: Image.Image, left: float, rows: int, columns: int) -> None:
    """The picture cut into its patches: white lines between them."""
    _picture(axes, seen, left, "patches", f"{rows} × {columns} =\n{rows * columns} visual tokens")
    for i in range(1, columns):
        axes.plot([left + 11 * i / columns] * 2, [12, 23], color="white", linewidth=0.7, zorder=3)
    for i in range(1, rows):
        axes.plot([left, left + 11], [12 + 11 * i / rows] * 2, color="white", linewidth=0.7, zorder=3)


def _stage(axes: Axes, left: float, name: str, layers: int, color: str, inside: str) -> None:
    """A box with one line for each layer at its right and lower edge."""
    _box(axes, left, 14, name, color, f"{inside}\n({layers} layers)")
    for layer in range(layers):
        x = left + 14 * (layer + 0.5) / layers
        axes.plot([x, x], [10.3, 12.3], color=color, linewidth=3, solid_capstyle="butt")


def _box(axes: Axes, left: float, width: float, name: str, color: str, inside: str) -> None:
    axes.add_patch(
        FancyBboxPatch((left, 13), width, 9, boxstyle="round,pad=0.3", facecolor=PAPER, edgecolor=color, linewidth=2)
    )
    axes.text(left + width / 2, 24.5, name, ha="center", fontsize=11, color=color, weight="bold")
    axes.text(left + width / 2, 17.5, inside, ha="center", va="center", fontsize=9, color=INK)
