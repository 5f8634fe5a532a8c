"""Figures from the tables of `compare` and `redundancy.profile`. Plain functions: a table in, a figure out."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from illava_lab.errors import LabError
from illava_lab.files import write_whole
from illava_lab.measuring.summary import baseline_of, budget_label
from illava_lab.paths import quoted
from illava_lab.views.colors import BLUE, GREEN, MARKERS, METHODS, ORANGE, PINK, RED, SKY, looks
from illava_lab.views.pictures import png
from illava_lab.views.words import as_html, as_label

COLORS = (BLUE, RED, GREEN, PINK, ORANGE, SKY)  # of lines that are no methods
BASELINE = "none"
BASELINE_COLOR = METHODS[BASELINE].color

Axis = Literal["flops", "tokens", "time"]
AXES: dict[str, tuple[str, str]] = {
    "flops": ("prefill_flops", "Prefill FLOPs, % of the bare model"),
    "tokens": ("tokens", "Mean visual tokens per layer, % of the bare model"),
    "time": ("prefill_ratio", "Prefill time, % of the bare model"),
}
LAYER_AXES = {"encoder": "enters layer ... of the image encoder", "llm": "enters layer ... of the LLM"}
ACCURACY = "Accuracy, %"
FULL = 18  # names below each other that a legend has room for
BARS = "Bars: 95 % interval of the difference to none, paired on the same questions"


class _Line(NamedTuple):
    """What one strategy looks like in the trade-off: everything in percent."""

    name: str
    x: list[float]
    y: list[float]
    below: list[float]
    above: list[float]
    budget: list[str]
    color: str
    markers: tuple[str, str]


def tradeoff(table: pd.DataFrame, x: Axis = "flops") -> go.Figure:
    """Accuracy against what it costs: one line per strategy, over its budgets; "none" is the dashed line.

    Args:
        table: from `compare`. Rows whose status is not "ok" are left out.
        x: "flops", "tokens" or "time".

    Raises:
        LabError: another x, or a table without the row of "none" or without the column that x needs.
    """
    baseline, lines = _lines(table, x)
    figure = go.Figure()
    for line in lines:
        figure.add_scatter(
            x=line.x,
            y=line.y,
            error_y={"type": "data", "array": line.above, "arrayminus": line.below, "thickness": 1.2, "width": 4},
            name=as_html(line.name),
            mode="lines+markers",
            line={"color": line.color},
            marker={"symbol": line.markers[0], "size": 10},
            customdata=[as_html(budget) for budget in line.budget],
            hovertemplate="%{customdata}: %{y:.1f} % at %{x:.0f} %<extra>%{fullData.name}</extra>",
        )
    figure.add_hline(baseline, line={"color": BASELINE_COLOR, "dash": "dash", "width": 1.5})
    figure.add_scatter(
        x=[100],
        y=[baseline],
        name=BASELINE,
        mode="markers",
        marker={"symbol": "circle-open", "size": 11, "color": BASELINE_COLOR},
        legendrank=0,  # first, as in the table
    )
    figure.update_layout(
        title=_titled("Accuracy and cost of visual-token reduction", BARS),
        xaxis={"title": AXES[x][1], "gridcolor": "#e5e5e5", "zeroline": False},
        yaxis={"title": ACCURACY, "gridcolor": "#e5e5e5", "zeroline": False},
        plot_bgcolor="white",
        legend={"title": "Strategy"},
        font={"size": 14},
        margin={"t": 90},
    )
    return figure


def _titled(title: str, below: str) -> str:
    """Two lines as one title: plotly puts a subtitle above its title where a widget is drawn before it is seen."""
    return f'{title}<br><span style="font-size: 14px">{below}</span>'


def tradeoff_picture(table: pd.DataFrame, x: Axis = "flops") -> Figure:
    """The same picture by matplotlib, which needs no browser.

    Raises:
        LabError: as `tradeoff`.
    """
    baseline, lines = _lines(table, x)
    columns = 1 + len(lines) // FULL
    figure = Figure(figsize=(8 + 2.4 * (columns - 1), 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(baseline, color=BASELINE_COLOR, linestyle="--", linewidth=1.2, zorder=1)
    drawn: dict[str, Any] = {}
    (drawn[BASELINE],) = axes.plot(
        [100], [baseline], "o", color=BASELINE_COLOR, fillstyle="none", markersize=8, label=BASELINE
    )
    for line in lines:
        drawn[line.name] = axes.errorbar(
            line.x, line.y, yerr=[line.below, line.above], label=line.name, color=line.color, marker=line.markers[1],
            markersize=7, capsize=3, elinewidth=1, linewidth=1.6, zorder=2,
        )  # fmt: skip
    axes.set_xlabel(AXES[x][1])
    axes.set_ylabel(ACCURACY)
    axes.set_title("Accuracy and cost of visual-token reduction", loc="left", fontsize=13, pad=20)
    axes.text(0, 1.015, BARS, transform=axes.transAxes, fontsize=8.5, color="#555555")
    axes.grid(color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes, drawn, title="Strategy", alignment="left", ncols=columns)
    return figure


def tradeoff_png(table: pd.DataFrame, path: str | PathLike, x: Axis = "flops") -> Path:
    """The same picture as a PNG file. Returns its path.

    Raises:
        LabError: as `tradeoff`, or the file cannot be written.
    """
    buffer = BytesIO()
    tradeoff_picture(table, x).savefig(buffer, format="png")
    # A plot has few colours: a palette of them takes a third of the bytes.
    return _written(path, png(Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)))


def categories(table: pd.DataFrame) -> go.Figure:
    """Where accuracy is lost: a map of strategies and budgets by category of question.

    Numbers are accuracies in percent, colours their difference to "none" in points.

    Raises:
        LabError: a table without the row of "none".
    """
    baseline = baseline_of(table, "accuracy")
    rows = table[table["status"] == "ok"]
    columns = ["accuracy", *(column for column in table if column.startswith("accuracy_"))]
    accuracy = rows[columns] * 100
    loss = accuracy - baseline[columns].astype(float) * 100
    names = [
        row.strategy if row.strategy == BASELINE else f"{row.strategy} {budget_label(row)}" for row in rows.itertuples()
    ]
    figure = go.Figure(
        go.Heatmap(
            z=loss,
            x=["all", *(as_html(column.removeprefix("accuracy_")) for column in columns[1:])],
            y=[as_html(name) for name in names],
            text=accuracy.round().astype("Int64").astype(str),
            texttemplate="%{text}",
            customdata=accuracy,
            hovertemplate="%{y}, %{x}: %{customdata:.1f} %, %{z:+.1f} points<extra></extra>",
            colorscale="RdBu",
            zmid=0,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": "Points<br>to none"}},
        )
    )
    figure.update_layout(
        title=_titled("Accuracy by category, %", "Colour: difference to none, in points"),
        xaxis={"side": "top"},
        yaxis={"autorange": "reversed"},
        plot_bgcolor="white",
        font={"size": 14},
        height=220 + 32 * len(names),
        margin={"t": 130},
    )
    return figure


def layers(tables: Mapping[str, pd.DataFrame], column: str, label: str) -> Figure:
    """One measure over the layers of encoder and LLM, a line for each image, by matplotlib.

    Args:
        tables: name -> table from `redundancy.profile`.
        column: of those tables; label: what its numbers are.

    Raises:
        LabError: no table, or a column that they lack.
    """
    if not isinstance(tables, Mapping) or not tables:
        raise LabError(f"tables must name at least one table, such as {{'photo': profile(...)}}, got {tables!r:.80}")
    for name, table in tables.items():
        if column not in table:
            raise LabError(f"column must be one of {', '.join(table.columns[2:])}, got {column!r} for {name!r}")
    figure = Figure(figsize=(8.6, 3.5), layout="constrained")
    for axes, (stage, title) in zip(figure.subplots(1, 2, sharey=True), LAYER_AXES.items(), strict=True):
        drawn = {}
        for number, (name, table) in enumerate(tables.items()):
            own = table[(table["stage"] == stage) & table[column].notna()]
            marker = list(MARKERS.values())[number % len(MARKERS)]
            (drawn[name],) = axes.plot(
                own["layer"],
                own[column].astype(float),
                color=COLORS[number % len(COLORS)],
                marker=marker,
                markersize=6,
                label=name,
            )
        axes.set_xlabel(title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="#e5e5e5", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylim(bottom=0)  # after all lines: the axes share it
    figure.axes[0].set_ylabel(as_label(label))
    _legend(figure.axes[1], drawn)
    return figure


def _legend(axes: Axes, drawn: Mapping[str, Any], **settings: Any) -> None:
    """Name what is drawn. Given one by one, names that begin with an underscore are not left out."""
    names = [as_label(name) for name in drawn]
    axes.legend([*drawn.values()], names, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, **settings)


def save_html(figure: go.Figure, path: str | PathLike) -> Path:
    """Write a figure as one HTML file that needs no network. Returns its path.

    Raises:
        LabError: the file cannot be written.
    """
    return _written(path, figure.to_html(include_plotlyjs=True))


def _written(path: str | PathLike, data: str | bytes) -> Path:
    try:
        write_whole(path, data)
    except (OSError, ValueError) as error:  # ValueError: no file can have this name
        raise LabError(f"path: cannot write {quoted(path)} ({getattr(error, 'strerror', None) or error})") from None
    return Path(path)


# ---------------------------------------------------------------------------------------------- what is drawn
def _lines(table: pd.DataFrame, x: str) -> tuple[float, list[_Line]]:
    """Accuracy of "none" in percent, and the lines of the other strategies in the order of the table."""
    if x not in AXES:
        raise LabError(f"x must be one of {', '.join(AXES)}, got {x!r}")
    column = AXES[x][0]
    baseline = baseline_of(table, column, "accuracy", "difference", "difference_low", "difference_high")
    if pd.isna(baseline[column]):
        raise LabError(f"x={x!r} needs the column {column!r}, which this table leaves empty")
    rows = table[(table["status"] == "ok") & (table["strategy"] != BASELINE)]
    lines, drawn = [], looks(map(str, rows["strategy"]))
    for name, own in rows.groupby("strategy", sort=False):
        own = own.sort_values(column)
        percent = own[["difference", "difference_low", "difference_high"]] * 100
        lines.append(
            _Line(
                name=str(name),
                x=(own[column] / baseline[column] * 100).tolist(),
                y=(own["accuracy"] * 100).tolist(),
                below=(percent["difference"] - percent["difference_low"]).fillna(0).tolist(),
                above=(percent["difference_high"] - percent["difference"]).fillna(0).tolist(),
                budget=[budget_label(row) for row in own.itertuples()],
                color=drawn[str(name)].color,
                markers=(drawn[str(name)].marker, MARKERS[drawn[str(name)].marker]),
            )
        )
    return float(baseline["accuracy"] * 100), lines
