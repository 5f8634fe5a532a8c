"""Pairs of rows of a comparison, each on the same questions, as a figure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from illava_lab.measuring.difference import difference
from illava_lab.views.colors import GREY, MARKERS, look

Pair = tuple[int | str, int | str]
"""Two rows, as `il.difference` names them: the first minus the second."""


def paired_figure(table: pd.DataFrame, pairs: Sequence[Pair], title: str = "") -> Figure:
    """A line for each pair of rows: their difference and its paired 95 % interval, left of 0 where the first loses.

    Raises:
        LabError: as `il.difference`.
    """
    figure = Figure(figsize=(8, 1.1 + 0.3 * len(pairs)), layout="constrained")
    axes = figure.add_subplot(xlabel="points, first minus second; bars: paired 95 % interval")
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
    for row, (first, second) in enumerate(reversed(pairs)):
        found = difference(table, first, second)
        own = look(str(first).partition(" ")[0])
        bars = [[max(0.0, 100 * end)] for end in (found.value - found.low, found.high - found.value)]
        axes.errorbar([100 * found.value], [row], xerr=bars, fmt=MARKERS[own.marker], color=own.color, capsize=4)
    axes.set_yticks(range(len(pairs)), [_named(*pair) for pair in reversed(pairs)], fontsize=9)
    axes.set_ylim(-0.6, len(pairs) - 0.4)
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    tidy(axes)
    return figure


def _named(first: int | str, second: int | str) -> str:
    """A budget that both have is said once."""
    (a, budget), (b, other) = (
        [*re.split(r" (?=FLOPs |keep )", str(row), maxsplit=1), ""][:2] for row in (first, second)
    )
    return f"{a} minus {b}, {budget}" if budget and budget == other else f"{first} minus {second}"


def tidy(axes: Axes) -> None:
    """As all figures of the course look: light lines, no box."""
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
