"""Figures that several chapters show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from illava_lab.models.images import ImageLike
from illava_lab.schedules.budget import AnyStrategy
from illava_lab.session.lab import Lab
from illava_lab.views.colors import looks
from illava_lab.views.pictures import after_stage, seen_image, side_by_side, token_picture


def tokens_left(
    lab: Lab,
    image: ImageLike,
    question: str | Sequence[str],
    strategies: Sequence[AnyStrategy],
    keep: float | None = None,
    flops: float | None = None,
    stage: str = "llm",
) -> Figure:
    """The tokens that each strategy leaves of one image, and its answer, side by side.

    Args:
        question: one, or several: then each strategy is shown with each of them.
        keep, flops: the budget, as in `Lab.ask`.
        stage: what is left by the "encoder", or in the last LLM layer.

    Raises:
        LabError: as `Lab.ask`.
    """
    questions = [question] if isinstance(question, str) else list(question)
    seen, panels = seen_image(lab, image), []
    for strategy in strategies:
        for asked in questions:
            bare = strategy == "none"
            answer = lab.ask(image, asked, strategy, None if bare else keep, flops=None if bare else flops)
            left = after_stage(answer.trace, stage)
            title = f"{answer.strategy}: “{answer.text}”"
            title = title if len(questions) == 1 else f"{asked}\n{title}"
            panels.append((title, token_picture(seen, left)))
    return side_by_side(
        panels,
        questions[0] if len(questions) == 1 else f"{len(left.anchor)} tokens left",
        size=2.6 if len(questions) == 1 else 3.2,
    )


def lines(
    rows: Mapping[str, Tensor], across: Sequence[str] | Sequence[int], x: str, y: str, top: float | None = 1.0
) -> Figure:
    """One line for each row of numbers, such as a mean over places."""
    figure = Figure(figsize=(6.8, 3.1), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y, ylim=(0, top))
    for (name, values), look in zip(rows.items(), looks(rows).values(), strict=True):
        axes.plot(across, values[: len(across)], marker="o", color=look.color, label=name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, fontsize=9)
    return figure
