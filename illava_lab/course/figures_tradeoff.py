"""The figures of chapter 04: what is lost by kind of question, how wide intervals are, and time against FLOPs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from illava_lab.course.paired import tidy
from illava_lab.measuring.measure import Speed, ratio
from illava_lab.measuring.summary import baseline_of, budget_label
from illava_lab.views.colors import BLUE, GREY, ORANGE, RED, looks

KIND = "accuracy_"


def lost_by_kind(table: pd.DataFrame, flops: float) -> pd.DataFrame:
    """(kinds, strategies) points that each strategy loses to the bare model at one budget."""
    bare = baseline_of(table, "accuracy")
    kinds = [column for column in table if column.startswith(KIND)]
    rows = table[(table["flops"] == flops) & (table["status"] == "ok")].set_index("strategy")
    lost = 100 * (bare[kinds].astype(float) - rows[kinds].astype(float))
    return lost.rename(columns=lambda column: column[len(KIND) :]).T.dropna(how="all")  # kinds of other tasks


def kinds_figure(table: pd.DataFrame, flops: float) -> Figure:
    """Bars of what each kind of question loses, by strategy."""
    lost = lost_by_kind(table, flops)
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    axes = figure.add_subplot(ylabel="lost, points", title=f"What is lost at {flops:g} of the FLOPs")
    width, drawn = 0.8 / len(lost.columns), looks(lost.columns)
    for number, name in enumerate(lost):
        places = np.arange(len(lost)) + width * (number - (len(lost.columns) - 1) / 2)
        axes.bar(places, lost[name], 0.92 * width, color=drawn[name].color, label=name)
    axes.set_xticks(range(len(lost)), list(lost.index))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    tidy(axes)
    return figure


def draws_figure(few: pd.DataFrame, many: pd.DataFrame) -> tuple[Figure, str]:
    """Intervals from few questions beside what many questions say, for every row that is in both; and a sentence."""
    pairs = few.merge(many, on=["strategy", "flops"], suffixes=("", "_many"))
    pairs = pairs[pairs["flops"].notna() & (pairs["status"] == "ok") & (pairs["status_many"] == "ok")]
    figure = Figure(figsize=(8, 0.9 + 0.27 * len(pairs)), layout="constrained")
    axes = figure.add_subplot(xlabel="difference to none, points; bars: 95 % interval")
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
    for end, color, shift, questions in (("", ORANGE, 0.16, few), ("_many", BLUE, -0.16, many)):
        value, low, high = (100 * pairs[f"difference{part}{end}"] for part in ("", "_low", "_high"))
        label = f"{questions['samples'].iloc[0]:,} questions"
        places = np.arange(len(pairs))[::-1] + shift
        axes.errorbar(
            value,
            places,
            xerr=[(value - low).clip(0), (high - value).clip(0)],
            fmt="o",
            color=color,
            capsize=3,
            label=label,
        )
    names = [f"{row.strategy} {budget_label(row)}" for row in pairs.assign(keep=np.nan).itertuples()]
    axes.set_yticks(range(len(pairs))[::-1], names, fontsize=8)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    tidy(axes)
    inside = (pairs["difference_low"] <= pairs["difference_many"]) & (
        pairs["difference_many"] <= pairs["difference_high"]
    )
    outside = [name for name, holds in zip(names, inside, strict=True) if not holds]
    told = f"{inside.sum()} of {len(pairs)} intervals from few questions hold the value from many"
    return figure, told + (f"; outside: {', '.join(outside)}" if outside else "")


def time_figure(runs: Mapping[int, Sequence[Speed]], shares: Sequence[float]) -> Figure:
    """Prefill and decoding time against FLOPs, a line for each batch size, with the middle half of the rounds.

    Args:
        runs: batch size -> the bare model, then one for each share of the FLOPs.
    """
    figure = Figure(figsize=(8.6, 3.4), layout="constrained")
    for axes, part in zip(figure.subplots(1, 2, sharey=True), ("prefill", "decode"), strict=True):
        for (batch, own), (color, marker) in zip(runs.items(), ((RED, "s"), (BLUE, "o")), strict=False):
            found = [ratio(getattr(run, part), getattr(own[0], part)) for run in own[1:]]
            bars = [[r.value - r.low for r in found], [r.high - r.value for r in found]]
            axes.errorbar(
                shares, [r.value for r in found], yerr=bars, color=color, marker=marker, capsize=3,
                label=f"batch of {batch}",
            )  # fmt: skip
        axes.plot([min(shares), 1], [min(shares), 1], color=GREY, linestyle=":", label="time = FLOPs")
        axes.axhline(1, color=GREY, linestyle="--", linewidth=1, label="bare model")
        axes.set(xlabel="FLOPs, share of the bare model", title={"prefill": "prefill", "decode": "a new token"}[part])
        tidy(axes)
    figure.axes[0].set_ylabel("time, share of the bare model")
    figure.axes[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def speedups_figure(single: NDArray[np.float64], paired: float) -> Figure:
    """How far speed-ups scatter that are one time over one other time, around the median of paired rounds."""
    figure = Figure(figsize=(6.8, 2.6), layout="constrained")
    axes = figure.add_subplot(xlabel="speed-up from one run each", ylabel="pairs of runs")
    axes.hist(single.flatten(), bins=40, color=BLUE)
    axes.axvline(paired, color=RED, label="median of paired rounds")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    tidy(axes)
    return figure
