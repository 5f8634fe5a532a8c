"""How things are displayed: a live widget where there is a kernel, and in the same output a picture for elsewhere."""

from __future__ import annotations

import base64
import sys

import ipywidgets
import plotly.graph_objects as go
from IPython.display import display
from matplotlib.figure import Figure

from illava_lab.views.pictures import to_png

# plotly's tool bar would cover what is drawn, and one of its buttons uploads the figure, the reader's image included.
CONFIG = {"displayModeBar": False}
# On the page's own ground, dark or bright, with letters that can be read on both.
CLEAR, LETTERS, GRID = "rgba(0,0,0,0)", "#767676", "rgba(128,128,128,0.3)"


def live_figure(figure: go.Figure) -> go.FigureWidget:
    """A finished figure as a widget, without plotly's tool bar, for pages of either theme."""
    widget = go.FigureWidget(figure)
    widget.update_layout(paper_bgcolor=CLEAR, plot_bgcolor=CLEAR, font_color=LETTERS)
    for axis in (*widget.select_xaxes(), *widget.select_yaxes()):
        axis.update({"gridcolor": GRID} if axis.gridcolor else {"showgrid": False})
    widget._config = CONFIG  # there is no public name for it
    return widget


def show_widget(widget: ipywidgets.Widget, png: bytes, alt: str) -> None:
    """Display a live widget, and in the same output a picture for readers without a kernel (GitHub, print)."""
    data = {
        "text/plain": alt,
        "image/png": base64.b64encode(png).decode(),
        "application/vnd.jupyter.widget-view+json": {
            "version_major": 2,
            "version_minor": 0,
            "model_id": widget.model_id,
        },
    }
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def show_figure(figure: Figure, alt: str, colors: int | None = None) -> None:
    """Display a matplotlib figure as a PNG with a description for those who cannot see it; `colors` as in `to_png`."""
    display(
        {"image/png": base64.b64encode(to_png(figure, colors=colors)).decode(), "text/plain": alt},
        raw=True,
        metadata={"image/png": {"alt": alt}},
    )


def show_plot(figure: go.Figure, picture: Figure, alt: str) -> None:
    """Display an interactive plotly figure, and in the same output its static picture for viewers without a kernel."""
    if "google.colab" in sys.modules:
        figure.show(config=CONFIG)  # Colab draws plotly figures best through plotly's own renderer
    else:
        show_widget(live_figure(figure), to_png(picture), alt)
