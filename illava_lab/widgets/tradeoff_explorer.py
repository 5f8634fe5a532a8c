"""Trade-off explorer: tick methods and categories, choose a point, and see the questions that its reduction loses."""

from __future__ import annotations

import base64
import html
import itertools
import math
import textwrap
from collections.abc import Collection, Sequence
from os import PathLike
from typing import Any

import anywidget
import pandas as pd
import plotly.graph_objects as go
import traitlets
from matplotlib.figure import Figure

from illava_lab.errors import LabError, one_of
from illava_lab.measuring.tasks import Task
from illava_lab.views.colors import looks
from illava_lab.views.pictures import in_a_row, png, stacked, to_png
from illava_lab.views.plots import BASELINE, tradeoff, tradeoff_picture
from illava_lab.views.seen import webp
from illava_lab.views.words import as_label
from illava_lab.widgets.front import script, style
from illava_lab.widgets.output import show_widget
from illava_lab.widgets.tradeoff_run import lost, read_run, right, within

SHOWN = 6  # questions in a picture
HIGH = 112  # pixels of a picture on the page
RING = {"symbol": "circle-open", "size": 22, "color": "black", "line": {"width": 2}}


# ---------------------------------------------------------------------------------------------- how it looks
def tradeoff_figure(rows: pd.DataFrame, strategies: Collection[str], point: str) -> go.Figure:
    """`plots.tradeoff` with some strategies, and a ring around a point: the explorer's plot as a plain function."""
    figure = tradeoff(rows)
    for trace in figure.data:
        trace.visible = html.unescape(trace.name) in strategies or trace.name == BASELINE
    bare, row = (rows[rows["point"] == name].iloc[0] for name in (BASELINE, point))
    figure.add_scatter(
        x=[100 * row["prefill_flops"] / bare["prefill_flops"]], y=[100 * row["accuracy"]], mode="markers", marker=RING,
        name="chosen", hoverinfo="skip",
    )  # fmt: skip
    return figure.update_layout(width=800, height=430, dragmode=False)


def lost_picture(task: Task, questions: pd.DataFrame, title: str) -> Figure:
    """The first few lost questions with their images, by matplotlib."""
    first = questions.head(SHOWN)
    figure = Figure(figsize=(8, 2.5), layout="constrained")
    for axes, row in zip(figure.subplots(1, SHOWN), [*first.itertuples(), *[None] * SHOWN], strict=False):
        axes.set_axis_off()
        if row is not None:
            axes.imshow(in_a_row(task.pictures(row.image_id)))
            question = textwrap.fill(row.question, 22)
            axes.set_title(as_label(f"{question}\nright: {row.answer}\nsaid: {row.said}"), fontsize=6.5)
    figure.suptitle(as_label(title) + (f", {len(first)} shown" if len(questions) > len(first) else ""), fontsize=10)
    return figure


# ---------------------------------------------------------------------------------------------- the widget
class _Figure(anywidget.AnyWidget):
    """The front-end. `catalog`: all that can be shown; `start` and `shown`: what is ticked and chosen at first and now,
    as numbers; `intervals`: numbers of categories -> [low, high] of the difference of each point to the bare model."""

    _esm = script("tradeoff")
    _css = style("tradeoff")
    catalog = traitlets.Dict().tag(sync=True)
    start = traitlets.Dict().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    intervals = traitlets.Dict().tag(sync=True)


class TradeoffExplorer:
    """Accuracy against cost for the methods and categories that are ticked, and what the chosen point loses.

    Points are chosen by a click on the plot or from the list; everything works by keyboard. Answers were given when the
    comparison ran; no model runs here.

    Args:
        folder, task: of the comparison; see `read_run`.

    Attributes:
        widget: what is displayed.

    Raises:
        LabError: as `read_run`, or a run with nothing but the bare model.
    """

    def __init__(self, folder: str | PathLike[str], task: Task) -> None:
        self._task = task
        self._rows, self._answers = read_run(folder, task)
        self._points = [point for point in self._rows["point"] if point != BASELINE]
        if not self._points:
            raise LabError("the run holds no strategy but the bare model")
        self._names = list(dict.fromkeys(self._rows["strategy"][self._rows["strategy"] != BASELINE]))
        self._choices = {"strategies": self._names, "categories": list(task.categories), "point": self._points}
        everything = self._numbers(self._names, task.categories, self._points[-1])
        self.widget = _Figure(catalog=self._catalog(), start=everything)
        self.widget.observe(lambda change: self._measure(change["new"]["categories"]), names="shown")
        self.widget.shown = everything

    @property
    def settings(self) -> dict[str, Any]:
        """What is shown now: strategies, categories, point."""
        shown = self.widget.shown
        return {
            "strategies": tuple(self._names[number] for number in shown["methods"]),
            "categories": tuple(self._task.categories[number] for number in shown["categories"]),
            "point": self._points[shown["point"]],
        }

    @property
    def lost(self) -> pd.DataFrame:
        """The questions that the chosen point loses, in the ticked categories."""
        settings = self.settings
        if not settings["categories"]:
            return self._task.samples.head(0).assign(said="")
        return lost(self._answers, self._task, settings["point"], settings["categories"])

    def set(
        self,
        *,
        strategies: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        point: str | None = None,
    ) -> None:
        """Tick and choose; what is not named stays. The strategy of the point is ticked in any case.

        Raises:
            LabError: no such strategy, category or point.
        """
        asked = {"strategies": strategies, "categories": categories, "point": point}
        given = {name: value for name, value in asked.items() if value is not None}
        for name, value in given.items():
            if not isinstance(value, (str, list, tuple)):
                raise LabError(f"{name} must be a name or a list of names, got {value!r}")
            for one in [value] if isinstance(value, str) else value:
                one_of(name, one, tuple(self._choices[name]))
        after = {**self.settings, **given}
        own = self._strategy(after["point"])
        if own not in after["strategies"]:
            after["strategies"] = [*after["strategies"], own]
        self.widget.shown = self._numbers(**after)

    def show(self, **settings: Any) -> None:
        """Display the explorer, with a picture of what it shows for viewers that have no kernel."""
        self.set(**settings)
        self.widget.start = self.widget.shown
        shown, title = self.settings, self._title()
        rows = within(self._rows, self._answers, self._task, shown["categories"] or None)
        rows = rows[rows["strategy"].isin([BASELINE, *shown["strategies"]])]
        pictures = tradeoff_picture(rows), lost_picture(self._task, self.lost, title)
        show_widget(self.widget, stacked([to_png(picture) for picture in pictures]), title)

    def store(self) -> dict[str, Any]:
        """All that a page without a kernel needs; `illava.tradeoff.mount(element, stored)` takes it.

        The intervals of every set of categories are computed: about 0.02 s for each point of each of the 2^n sets.
        """
        numbers = range(len(self._task.categories))
        for count in range(1, len(numbers) + 1):
            for chosen in itertools.combinations(numbers, count):
                self._measure(chosen)
        pictures = [
            {**shown, "address": webp(in_a_row(self._task.pictures(shown["name"])))}
            for shown in self.widget.catalog["pictures"]
        ]
        catalog = {**self.widget.catalog, "pictures": pictures}
        return {"catalog": catalog, "start": self.widget.shown, "intervals": self.widget.intervals}

    # ---------------------------------------------------------------------------------------------- as numbers
    def _numbers(self, strategies: Collection[str], categories: Collection[str], point: str) -> dict[str, Any]:
        """Settings as the page has them."""
        given = [[one] if isinstance(one, str) else one for one in (strategies, categories)]
        methods, kinds = ([all_.index(one) for one in all_ if one in own] for all_, own in zip(
            (self._names, list(self._task.categories)), given, strict=True
        ))  # fmt: skip
        return {"methods": methods, "categories": kinds, "point": self._points.index(point)}

    def _measure(self, categories: Sequence[int]) -> None:
        """Have the intervals of these categories, by number."""
        key = ",".join(map(str, categories))
        if not key or key in self.widget.intervals:
            return
        names = [self._task.categories[number] for number in categories]
        rows = within(self._rows, self._answers, self._task, names).set_index("point").loc[self._points]
        ends = [
            [round(row.difference_low, 4), round(row.difference_high, 4)] if math.isfinite(row.difference_low) else []
            for row in rows.itertuples()
        ]
        self.widget.intervals = {**self.widget.intervals, key: ends}

    def _catalog(self) -> dict[str, Any]:
        task, drawn = self._task, looks(self._names)
        correct, kinds = right(self._answers, task), task.samples["category"]
        losses = {
            point: [lost(self._answers, task, point, [name])["said"] for name in task.categories]
            for point in self._points
        }
        needed = {at for each in losses.values() for said in each for at in said.index[:SHOWN]}
        samples = task.samples[task.samples.index.isin(needed)]
        number = {at: place for place, at in enumerate(samples.index)}
        images = {image_id: place for place, image_id in enumerate(dict.fromkeys(samples["image_id"]))}
        bare = self._rows[self._rows["point"] == BASELINE].iloc[0]
        points = [
            {
                "name": row.point,
                "method": self._names.index(row.strategy),
                "x": round(100 * row.prefill_flops / bare["prefill_flops"], 3),
                "right": _by_kind(correct[row.point], kinds, task),
                "count": [len(said) for said in losses[row.point]],
                "lost": [[[number[at], text] for at, text in said[:SHOWN].items()] for said in losses[row.point]],
            }
            for row in self._rows[self._rows["point"] != BASELINE].itertuples()
        ]
        questions = [
            {"question": row.question, "answer": row.answer, "picture": images[row.image_id]}
            for row in samples.itertuples()
        ]
        return {
            "methods": [{"label": name, **drawn[name]._asdict()} for name in self._names],
            "categories": [{"name": name, "count": int((kinds == name).sum())} for name in task.categories],
            "bare": _by_kind(correct[BASELINE], kinds, task),
            "points": points,
            "questions": questions,
            "pictures": [_picture(task, image_id) for image_id in images],
        }

    def _strategy(self, point: str) -> str:
        return str(self._rows["strategy"][self._rows["point"] == point].iloc[0])

    def _title(self) -> str:
        picked = self.settings["categories"]
        where = "" if len(picked) == len(self._task.categories) else f" in {', '.join(picked)}"
        return f"{self.settings['point']}: {len(self.lost)} questions lost{where} that the bare model answers"


def _by_kind(correct: pd.Series, kinds: pd.Series, task: Task) -> list[int]:
    """How many questions of each category are right."""
    return [int(correct[kinds == name].sum()) for name in task.categories]


def _picture(task: Task, image_id: str) -> dict[str, Any]:
    """What a question is about, as the page shows it: several pictures in a row."""
    encoded = task.encoded(image_id)
    data = encoded[0] if len(encoded) == 1 else png(in_a_row(task.pictures(image_id)))
    address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"name": image_id, "address": address, "width": HIGH * min(3, len(encoded))}
