"""Panels: pictures of a patch grid side by side, drawn by plotly (to hover and click) or by matplotlib (for print)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from plotly.subplots import make_subplots

from illava_lab.errors import LabError

CLEAR = [[0, "rgba(0,0,0,0)"], [1, "rgba(0,0,0,0)"]]
FRAMES = (("black", 6), ("#ff40ff", 3))  # one over the other: seen on dark and on bright patches


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a patch grid.

    Attributes:
        title: what it shows. In all texts here `<br>` breaks the line; words of others go in by `as_html`.
        grid: (height, width) in patches.
        image: what lies under the cells, or None for white.
        values: (height, width) numbers shown as colours, NaN lets the image through; None for no colours.
        limits, legend: of the colour scale; colors is its name, known to plotly and matplotlib.
        hover: (height, width) text of each cell.
        frames: patches (raster order) with a frame around them.
        note: said across the panel, where there is nothing to show.

    Raises:
        LabError: values or hover do not fit the grid.
    """

    title: str
    grid: tuple[int, int]
    image: Image.Image | None = None
    values: np.ndarray | None = None
    limits: tuple[float, float] = (0.0, 1.0)
    legend: str = ""
    colors: str = "viridis"
    hover: np.ndarray | None = None
    frames: Sequence[int] = ()
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("values", "hover"):
            value = getattr(self, name)
            if value is not None and value.shape != tuple(self.grid):
                raise LabError(f"{name} must have the shape of the grid {tuple(self.grid)}, got {value.shape}")


def check_place(name: str, value: Any, last: int, where: str = "") -> None:
    """Raise LabError unless the value is a whole number from 0 to `last`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 <= int(value) <= last:
        raise LabError(f"{name} must be between 0 and {last}{where}, got {value!r}")


def live(panels: Sequence[Panel]) -> go.Figure:
    """The panels as a plotly figure: trace i is the grid of panel i, and every cell can be hovered and clicked."""
    figure = make_subplots(1, len(panels), subplot_titles=[panel.title for panel in panels], horizontal_spacing=0.02)
    for i, panel in enumerate(panels, start=1):
        height, width = panel.grid
        empty = panel.values is None
        left, right = figure.layout[_axis("xaxis", i)].domain
        figure.add_heatmap(
            row=1,
            col=i,
            z=np.zeros(panel.grid) if panel.values is None else _with_gaps(panel.values),
            zmin=panel.limits[0],
            zmax=panel.limits[1],
            colorscale=CLEAR if empty else panel.colors,
            showscale=bool(panel.legend) and not empty,
            colorbar={
                "orientation": "h", "x": (left + right) / 2, "xanchor": "center", "y": -0.03, "yanchor": "top",
                "len": 0.8 * (right - left), "thickness": 10, "title": {"text": panel.legend, "side": "bottom"},
                "tickfont": {"size": 11}, "nticks": 5,
            },
            customdata=panel.hover,
            hovertemplate="%{customdata}<extra></extra>" if panel.hover is not None else None,
            hoverinfo=None if panel.hover is not None else "none",
            hoverongaps=True,
            xgap=0.5,
            ygap=0.5,
        )  # fmt: skip
        x, y = (_axis(name, i) for name in ("x", "y"))
        if panel.image is not None:
            figure.add_layout_image(
                source=panel.image,
                xref=x,
                yref=y,
                x=-0.5,
                y=-0.5,
                sizex=width,
                sizey=height,
                sizing="stretch",
                layer="below",
            )
        for patch in panel.frames:
            row, column = divmod(patch, width)
            for color, thick in FRAMES:
                figure.add_shape(
                    x0=column - 0.5, x1=column + 0.5, y0=row - 0.5, y1=row + 0.5, xref=x, yref=y,
                    line={"color": color, "width": thick},
                )  # fmt: skip
        if panel.note:
            figure.add_annotation(
                text=panel.note,
                xref=x,
                yref=y,
                x=(width - 1) / 2,
                y=(height - 1) / 2,
                showarrow=False,
                bgcolor="rgba(255,255,255,0.9)",
            )
        figure.layout[_axis("xaxis", i)].update(
            range=[-0.5, width - 0.5], constrain="domain", visible=False, fixedrange=True
        )
        figure.layout[_axis("yaxis", i)].update(
            range=[height - 0.5, -0.5], scaleanchor=x, visible=False, fixedrange=True
        )
    figure.update_annotations(font_size=13)
    return figure.update_layout(
        width=270 * len(panels),
        height=370,
        margin={"l": 5, "r": 5, "t": 50, "b": 60},
        plot_bgcolor="white",
        dragmode=False,
    )


def still(panels: Sequence[Panel]) -> Figure:
    """The same panels as a matplotlib figure, which needs no browser."""
    figure = Figure(figsize=(3.0 * len(panels), 3.9))
    for i, panel in enumerate(panels):
        left, share = (i + 0.02) / len(panels), 0.96 / len(panels)
        axes = figure.add_axes((left, 0.15, share, 0.74))
        height, width = panel.grid
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        if panel.image is not None:
            axes.imshow(panel.image, extent=extent, interpolation="nearest")
        if panel.values is not None:
            low, high = panel.limits
            drawn = axes.imshow(
                panel.values, extent=extent, cmap=panel.colors, vmin=low, vmax=high, interpolation="nearest"
            )
            if panel.legend:
                place = figure.add_axes((left + 0.1 * share, 0.125, 0.8 * share, 0.02))
                bar = figure.colorbar(drawn, cax=place, orientation="horizontal")
                bar.set_label(panel.legend.replace("<br>", "\n"), fontsize=9)
                bar.ax.tick_params(labelsize=8)
        for patch in panel.frames:
            row, column = divmod(patch, width)
            for color, thick in FRAMES:
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=color, linewidth=thick))
        if panel.note:
            axes.text((width - 1) / 2, (height - 1) / 2, panel.note.replace("<br>", "\n"), ha="center", va="center",
                      fontsize=9, bbox={"color": "white", "alpha": 0.9})  # fmt: skip
        axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal")
        axes.set_title(panel.title.replace("<br>", "\n"), fontsize=10)
        axes.set_axis_off()
    return figure


def _with_gaps(values: np.ndarray) -> np.ndarray:
    """NaN as None: JSON, in which pages and kernels talk, has no NaN."""
    out = values.astype(object)
    out[np.isnan(values)] = None
    return out


def _axis(name: str, number: int) -> str:
    """plotly's name of an axis: xaxis, xaxis2, ..."""
    return name if number == 1 else f"{name}{number}"
