"""The same questions first and later in a conversation: what a cut costs the one, and what it costs the other."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from illava_lab.course.paired import tidy
from illava_lab.hooks.attach import attach
from illava_lab.measuring.converse import converse
from illava_lab.measuring.predict import correct, predict
from illava_lab.measuring.statistics import paired_difference
from illava_lab.measuring.tasks import Task
from illava_lab.schedules.budget import AnyStrategy
from illava_lab.schedules.plan import Plan
from illava_lab.session.lab import Lab
from illava_lab.views.colors import BLUE, ORANGE

WAYS = ("asked first", "asked later")


def first_and_later(lab: Lab, task: Task, strategy: AnyStrategy, plans: Mapping[str, Plan | None]) -> pd.DataFrame:
    """Every question but the first about each picture, asked alone and asked in its turn, under several plans.

    Args:
        plans: a name -> a plan of the strategy, None for the bare model.

    Returns:
        Rows by name. `asked first`, `asked later`: the share right. `change`, `low`, `high`: later minus first on the
        same questions, with the paired 95 % interval over pictures.

    Raises:
        LabError: as `converse`.
    """
    later = task.samples.groupby("image_id", sort=False).cumcount().to_numpy() > 0
    images, rows = task.samples["image_id"][later].tolist(), {}
    for name, plan in plans.items():
        talked = converse(lab, task) if plan is None else converse(lab, task, strategy, schedule=plan)
        with nullcontext() if plan is None else attach(lab.model, strategy, plan):
            alone = predict(lab, task)
        first, then = (correct(said, task)[later] for said in (alone, talked))
        ends = paired_difference(then, first, images)
        rows[name] = dict(zip((*WAYS, "change", "low", "high"), (first.mean(), then.mean(), *ends), strict=True))
    return pd.DataFrame.from_dict(rows, orient="index")


def talks_words(table: pd.DataFrame) -> str:
    """A line for each plan."""
    return "\n".join(
        f"{name:12} right asked first {100 * row[WAYS[0]]:3.0f} %, asked later {100 * row[WAYS[1]]:3.0f} %: "
        f"{100 * row['change']:+.1f} points ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})"
        for name, row in table.iterrows()
    )


def talks_figure(table: pd.DataFrame) -> Figure:
    """Two bars for each plan: the questions asked first, and the same asked later."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes, places = figure.add_subplot(ylabel="right, %", ylim=(0, 104)), np.arange(len(table))
    for side, way, color in ((-0.2, WAYS[0], BLUE), (0.2, WAYS[1], ORANGE)):
        bars = axes.bar(places + side, 100 * table[way], 0.38, color=color, label=way)
        axes.bar_label(bars, fmt="%.0f", fontsize=9)
    axes.set_xticks(places, list(table.index))
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    tidy(axes)
    return figure
