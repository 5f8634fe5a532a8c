"""Widgets: thin views on computed data. Each has a plain-function twin and a static picture."""

from __future__ import annotations

import base64
import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import plotly.graph_objects as go
from IPython.display import display
from matplotlib.figure import Figure

from illava_lab.images import ImageLike
from illava_lab.lab import Answer, Lab
from illava_lab.panels import Panel, live
from illava_lab.pictures import reduction_figure, to_png
from illava_lab.registry import make_strategy
from illava_lab.strategy import Strategy, one_of


class KeepSlider:
    """Ask one question at several keep ratios; a slider shows tokens and answer at each.

    Every position is computed when the slider is made, so moving it only swaps a picture. The plain-function twin
    is `illava_lab.pictures.reduction_figure`.

    Args:
        keeps: fractions of the visual tokens that the last LLM layer sees, in the order of the slider.
    """

    def __init__(
        self,
        lab: Lab,
        image: ImageLike,
        question: str,
        strategy: str | Strategy = "illava",
        keeps: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05),
    ) -> None:
        strategy = make_strategy(strategy)
        self.question, self.keeps = question, list(keeps)
        self.answers: list[Answer] = [lab.ask(image, question, strategy, keep) for keep in self.keeps]
        self._pngs = [
            to_png(reduction_figure(lab, image, answer, f"{strategy.name}, keep {keep:g}: “{answer.text}”"))
            for keep, answer in zip(self.keeps, self.answers, strict=True)
        ]
        self.slider = ipywidgets.SelectionSlider(
            options=[(f"{keep:g}", i) for i, keep in enumerate(self.keeps)],
            description="keep",
            continuous_update=True,
            layout=ipywidgets.Layout(width="420px"),
        )
        self.text = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="800px"))
        self.box = ipywidgets.VBox([self.slider, self.text, self.picture])
        self.slider.observe(lambda change: self._show(change["new"]), names="value")
        self._show(0)

    def _show(self, index: int) -> None:
        self.picture.value = self._pngs[index]
        self.text.value = f"<b>{self.question}</b> &rarr; {self.answers[index].text}"

    def show(self, keep: float) -> None:
        """Display the widget at one of `keeps`, with a picture of that position for viewers that have no kernel.

        Raises:
            LabError: keep is no position of the slider.
        """
        one_of("keep", keep, tuple(self.keeps))
        self.slider.value = start = self.keeps.index(keep)
        show_widget(self.box, self._pngs[start], f"{self.question} -> {self.answers[start].text}")


class PanelView:
    """Live panels: drawn anew in place, and a click on a cell is told.

    Args:
        panels: what is shown first. Later ones must be as many.
        on_click: called with the patch (raster order) whose cell was clicked, in whatever panel.

    Attributes:
        widget: the FigureWidget to display.
    """

    def __init__(self, panels: Sequence[Panel], on_click: Callable[[int], None]) -> None:
        self.widget = go.FigureWidget(live(panels))
        self._columns = panels[0].grid[1]
        for trace in self.widget.data:
            trace.on_click(lambda trace, points, state: self._clicked(points, on_click))

    def _clicked(self, points: Any, on_click: Callable[[int], None]) -> None:
        if points.ys:  # plotly also tells the traces that were not hit
            on_click(int(points.ys[0]) * self._columns + int(points.xs[0]))

    def update(self, panels: Sequence[Panel]) -> None:
        """Show other panels."""
        new = live(panels)
        with self.widget.batch_update():
            for old, trace in zip(self.widget.data, new.data, strict=True):
                old.update(trace.to_plotly_json(), overwrite=True)
            for part in ("images", "shapes", "annotations"):
                self.widget.layout[part] = new.layout[part]
        sync(self.widget)


def sync(widget: go.FigureWidget) -> None:
    """Let whoever attaches later (a page that is loaded again, an output frame) see the figure as it is now.

    plotly sends the full state when a FigureWidget is made, and later changes as messages that a late guest misses.
    """
    widget._widget_layout = copy.deepcopy(widget._layout_obj._props)
    widget._widget_data = copy.deepcopy(widget._data)


def show_widget(widget: ipywidgets.Widget, png: bytes, alt: str) -> None:
    """Display a live widget, and in the same output a picture for readers without a kernel (GitHub, print)."""
    data = {
        "text/plain": alt,
        "image/png": base64.b64encode(png).decode(),
        "application/vnd.jupyter.widget-view+json": {"version_major": 2, "version_minor": 0, "model_id": widget.model_id},
    }
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def show_figure(figure: Figure, alt: str) -> None:
    """Display a matplotlib figure as a PNG with a description for those who cannot see it."""
    display({"image/png": base64.b64encode(to_png(figure)).decode(), "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})


def show_plot(figure: go.Figure, picture: Figure, alt: str) -> None:
    """Display an interactive plotly figure, and in the same output its static picture for viewers without a kernel."""
    if "google.colab" in sys.modules:
        figure.show()  # Colab draws plotly figures best through plotly's own renderer
    else:
        show_widget(go.FigureWidget(figure), to_png(picture), alt)
