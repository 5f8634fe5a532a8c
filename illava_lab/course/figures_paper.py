"""The figures of chapter 07: published differences, the ramp of weights, and tokens by layer."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from illava_lab.course.paired import tidy
from illava_lab.measuring.published import published
from illava_lab.views.colors import BLUE, ORANGE, RED
from illava_lab.widgets.schedule_forecast import Forecast

CLAIMED = (0.2, 0.5)  # percent, in the abstract of release 1


def published_differences() -> pd.DataFrame:
    """What iLLaVA's README reports for LLaVA-OneVision-7B: `task`, `points` (reduced minus unreduced), `video`."""
    scores = published("illava", metric="score", model="LLaVA-OneVision 7B")
    scores = scores[(scores["unit"] == "score of 100") & scores["baseline"].notna()]
    made = scores.assign(points=scores["value"] - scores["baseline"], video=scores["setting"].str.contains("video"))
    return made.sort_values("points", ascending=False).reset_index(drop=True)


def differences_figure(scores: pd.DataFrame) -> Figure:
    """Points by benchmark, with the abstract's claim as a band."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    axes = figure.add_subplot(xlabel="iLLaVA minus unreduced model, points (published)")
    axes.axvspan(-CLAIMED[1], -CLAIMED[0], color="#d9d9d9", label="abstract: 0.2 to 0.5 %")
    for own, color, name in ((~scores["video"], BLUE, "image tasks"), (scores["video"], ORANGE, "video tasks")):
        axes.plot(scores["points"][own], scores["task"][own], "o", color=color, label=name)
    axes.legend(frameon=False)
    tidy(axes)
    return figure


def ramps_figure(removed: int = 12) -> Figure:
    """Weights of the removed tokens and of their target, in the published code and reversed."""
    whole = (removed + 1) * (removed + 2) / 2
    up = [100 * weight / whole for weight in range(1, removed + 2)]
    figure = Figure(figsize=(7.6, 2.6), layout="constrained")
    shown = {"reference (the code)": up[::-1], "reversed (ours)": up}
    for axes, (name, weights) in zip(figure.subplots(1, 2, sharey=True), shown.items(), strict=True):
        axes.bar(range(removed + 1), weights, color=[BLUE] * removed + [RED])
        axes.set(title=name, xlabel="rank by attention, least attended first")
        tidy(axes)
    figure.axes[0].set_ylabel("weight, %")
    return figure


def layers_figure(made: Forecast) -> Figure:
    """Visual tokens that enter each layer of encoder and LLM, with each stage's share of the bare model's FLOPs."""
    figure, first = Figure(figsize=(7.6, 2.8), layout="constrained"), 0
    axes = figure.add_subplot(xlabel="layer", ylabel="visual tokens that enter")
    for stage, name, color in (("encoder", "image encoder", BLUE), ("llm", "LLM", RED)):
        places = range(first, first + len(made.tokens[stage]))
        axes.bar(places, made.tokens[stage], color=color, label=f"{name}: {made.flops[stage]:.2f} of all FLOPs")
        first = places.stop
    axes.axhline(made.patches, color="#555555", linestyle="--", linewidth=1, label="bare model")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    tidy(axes)
    return figure
