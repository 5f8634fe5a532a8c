"""Pick an ingredient of a method, predict what it is worth, and see what was measured."""

from __future__ import annotations

import html

import ipywidgets
import pandas as pd

from illava_lab.course.better import tried_figure
from illava_lab.course.outcomes import points
from illava_lab.course.teaching import verdict
from illava_lab.errors import one_of
from illava_lab.measuring.statistics import Difference
from illava_lab.views.pictures import to_png
from illava_lab.widgets.output import show_widget

LESS, MORE = "two points or less", "more than two points"
THRESHOLD = 0.02


def cost(difference: float) -> str:
    """Which of the two a difference is, in fractions."""
    return MORE if difference < -THRESHOLD else LESS


class Ledger:
    """A list of variants to pick from; for each, two buttons, and behind them what was measured.

    Everything works by calls as by clicks: `choose`, then `guess`.

    Args:
        rows: by what is other, with columns difference, low and high, in fractions (`better.tried`).
    """

    def __init__(self, rows: pd.DataFrame) -> None:
        self._rows = rows
        self._names = list(rows.index)
        self._said: dict[str, str] = {}
        self._pick = ipywidgets.Dropdown(
            options=self._names, description="Other:", layout=ipywidgets.Layout(width="max-content")
        )
        self._buttons = [ipywidgets.Button(description=choice) for choice in (LESS, MORE)]
        self._told = ipywidgets.HTML()
        for button in self._buttons:
            button.on_click(lambda clicked: self.guess(clicked.description))
        self._pick.observe(lambda _: self._tell(), names="value")
        title = ipywidgets.HTML("<b>Predict:</b> what does it cost?")
        self._box = ipywidgets.VBox([self._pick, title, ipywidgets.HBox(self._buttons), self._told])
        self._tell()

    def choose(self, name: str) -> None:
        """Pick a variant.

        Raises:
            LabError: no such variant.
        """
        one_of("name", name, tuple(self._names))
        self._pick.value = name

    def guess(self, choice: str) -> str:
        """Commit to what the picked variant costs, and return what was measured.

        Raises:
            LabError: choice is neither `LESS` nor `MORE`.
        """
        one_of("choice", choice, (LESS, MORE))
        self._said.setdefault(self._pick.value, choice)
        self._tell()
        return self._sentence()

    def show(self) -> None:
        """Display it; where there is no kernel, all variants as a figure."""
        show_widget(self._box, to_png(tried_figure(self._rows)), "What each variant costs, with its paired interval")

    def _sentence(self) -> str:
        name = self._pick.value
        row = self._rows.loc[name]
        found = Difference(row["difference"], row["low"], row["high"])
        return f"{name}: {points(found)}, {cost(found.value)} ({verdict(self._said[name], cost(found.value))})."

    def _tell(self) -> None:
        """What is below the buttons: nothing before a guess."""
        done = self._pick.value in self._said
        for button in self._buttons:
            button.disabled = done
        of = f"{len(self._said)} of {len(self._names)} predicted"
        self._told.value = f"{html.escape(self._sentence())}<br>{of}" if done else of
