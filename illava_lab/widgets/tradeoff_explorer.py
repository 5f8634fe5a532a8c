"""Trade-off explorer: pick strategies and categories, click a point, and see the questions that its reduction loses."""

from __future__ import annotations

import base64
import html
import textwrap
from collections.abc import Collection, Sequence
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from matplotlib.figure import Figure
from PIL import Image

from illava_lab.errors import LabError, one_of
from illava_lab.measuring import loglines
from illava_lab.measuring.statistics import paired_difference
from illava_lab.measuring.summary import budget_label
from illava_lab.measuring.tasks import Task
from illava_lab.paths import is_file, quoted
from illava_lab.views.pictures import in_a_row, to_png
from illava_lab.views.plots import BASELINE, tradeoff, tradeoff_picture
from illava_lab.views.words import as_label
from illava_lab.widgets.output import live_figure, show_widget, sync

SHOWN = 6  # questions in a picture
RING = {"symbol": "circle-open", "size": 22, "color": "black", "line": {"width": 2}}


# ---------------------------------------------------------------------------------------------- what a run holds
def read_run(folder: str | PathLike[str], task: Task) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows and the answers that `compare(..., task=task, out=folder)` left in its `run.jsonl`.

    Returns:
        The rows as `compare` returns them, with the column `point` ("illava at FLOPs 0.5"), without those that failed;
        and the answers (questions, points), what was answered to each question of the task.

    Raises:
        LabError: no such run, or one of other questions.
    """
    log = Path(folder) / "run.jsonl"
    try:
        lines = loglines.read(log, checked=False) if is_file(log) else None
    except OSError as error:
        raise LabError(f"folder: cannot read {quoted(log)} ({error.strerror or error})") from None
    if lines is None:
        raise LabError(f"folder must hold the run.jsonl of a comparison, {quoted(folder)} does not")
    if lines.settings.get("questions") != task.digest():
        raise LabError(f"the run in {quoted(folder)} was on other questions than the {len(task)} of task {task.name!r}")
    latest = {entry.get("label", number): entry for number, entry in enumerate(lines.entries)}
    done = [entry for entry in latest.values() if entry["row"]["status"] == "ok"]
    if any(len(entry.get("answers") or ()) != len(task) for entry in done):
        raise LabError(
            f"{quoted(log)} lacks answers to some of the {len(task)} questions: compare with this folder again"
        )
    rows = pd.DataFrame([entry["row"] for entry in done])
    rows["point"] = [
        row.strategy if row.strategy == BASELINE else f"{row.strategy} at {budget_label(row)}"
        for row in rows.itertuples()
    ]
    return rows, pd.DataFrame({point: entry["answers"] for point, entry in zip(rows["point"], done, strict=True)})


def right(answers: pd.DataFrame, task: Task) -> pd.DataFrame:
    """(questions, points) bool: exact match, but for case and for space at the ends, as in `evaluate.correct`."""
    wanted = task.samples["answer"].str.strip().str.lower()
    return answers.apply(lambda column: column.str.strip().str.lower() == wanted)


def within(
    rows: pd.DataFrame, answers: pd.DataFrame, task: Task, categories: Collection[str] | None = None
) -> pd.DataFrame:
    """The rows with accuracy, difference and interval over some categories only: what `plots.tradeoff` draws.

    Raises:
        LabError: no such category, or none.
    """
    chosen = _in(categories, task)
    correct, images = right(answers, task)[chosen], task.samples["image_id"][chosen]
    rows = rows.copy()
    rows["accuracy"] = correct.mean()[rows["point"]].to_numpy()
    found = [
        paired_difference(correct[point].to_numpy(), correct[BASELINE].to_numpy(), images) for point in rows["point"]
    ]
    rows[["difference", "difference_low", "difference_high"]] = found
    return rows


def lost(answers: pd.DataFrame, task: Task, point: str, categories: Collection[str] | None = None) -> pd.DataFrame:
    """The questions that a point gets wrong and the bare model gets right: the task's columns, and `said`.

    Raises:
        LabError: no such point or category.
    """
    one_of("point", point, tuple(answers))
    correct = right(answers, task)
    chosen = _in(categories, task) & correct[BASELINE] & ~correct[point]
    return task.samples[chosen].assign(said=answers[point][chosen])


def _in(categories: Collection[str] | None, task: Task) -> pd.Series:
    """(questions,) bool."""
    names = task.categories if categories is None else categories
    if not names:
        raise LabError("categories must name at least one category")
    for name in names:
        one_of("category", name, tuple(task.categories))
    return task.samples["category"].isin(list(names))


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


def _page(task: Task, questions: pd.DataFrame, title: str) -> str:
    """The same in HTML."""
    cells = []
    for row in questions.head(SHOWN).itertuples():
        encoded = task.encoded(row.image_id)
        data = encoded[0] if len(encoded) == 1 else _png(in_a_row(task.pictures(row.image_id)))
        picture = base64.b64encode(data).decode()
        question, answer, said = (html.escape(words) for words in (row.question, row.answer, row.said))
        words = f"{question}<br>right: <b>{answer}</b>, said: <b>{said}</b>"
        width = 112 * min(3, len(encoded))
        image = f'<img src="data:image/png;base64,{picture}" alt="{html.escape(row.image_id)}" width="{width}">'
        cells.append(f'<div style="width:{width + 12}px;line-height:1.25;font-size:12px">{image}<br>{words}</div>')
    return f'<b>{html.escape(title)}</b><div style="display:flex;flex-wrap:wrap;gap:6px">{"".join(cells)}</div>'


# ---------------------------------------------------------------------------------------------- the widget
class TradeoffExplorer:
    """Accuracy against cost for the strategies and categories that are picked, and what the chosen point loses.

    Points are chosen by a click on the plot or from the list; everything works by keyboard. Answers were given when the
    comparison ran; no model runs here.

    Args:
        folder, task: of the comparison; see `read_run`.

    Attributes:
        settings: what is shown now: strategies, categories, point.

    Raises:
        LabError: as `read_run`, or a run with nothing but the bare model.
    """

    def __init__(self, folder: str | PathLike[str], task: Task) -> None:
        self._task = task
        self._rows, self._answers = read_run(folder, task)
        points = [point for point in self._rows["point"] if point != BASELINE]
        if not points:
            raise LabError("the run holds no strategy but the bare model")
        names = list(dict.fromkeys(self._rows["strategy"][self._rows["strategy"] != BASELINE]))
        self._start = {"strategies": tuple(names), "categories": tuple(task.categories), "point": points[-1]}
        self._seen: dict[tuple[str, ...], pd.DataFrame] = {}
        tall = ipywidgets.Layout(width="240px", height="150px")
        self.strategies = ipywidgets.SelectMultiple(options=names, value=names, description="strategies", layout=tall)
        self.categories = ipywidgets.SelectMultiple(
            options=task.categories, value=task.categories, description="categories", layout=tall
        )
        self.point = ipywidgets.Dropdown(
            options=points, value=points[-1], description="point", layout=ipywidgets.Layout(width="330px")
        )
        self.reset = ipywidgets.Button(description="Reset", layout=ipywidgets.Layout(width="80px"))
        self.text = ipywidgets.HTML()
        self._controls = {name: getattr(self, name) for name in self._start}
        self._quiet = False
        self.widget = live_figure(self._figure())
        for trace in self.widget.data:
            trace.on_click(self._clicked)
        for control in self._controls.values():
            control.observe(self._draw, names="value")
        self.reset.on_click(lambda _: self.set(**self._start))
        controls = ipywidgets.HBox([self.strategies, self.categories, ipywidgets.VBox([self.point, self.reset])])
        self.box = ipywidgets.VBox([controls, self.widget, self.text])
        self._draw()

    @property
    def settings(self) -> dict[str, Any]:
        """What is shown now."""
        return {name: control.value for name, control in self._controls.items()}

    @property
    def lost(self) -> pd.DataFrame:
        """The questions that the chosen point loses, in the chosen categories."""
        return lost(self._answers, self._task, self.point.value, self._picked)

    def set(
        self,
        *,
        strategies: Sequence[str] | None = None,
        categories: Sequence[str] | None = None,
        point: str | None = None,
    ) -> None:
        """Move controls; what is not named stays.

        Raises:
            LabError: no such strategy, category or point.
        """
        asked = {"strategies": strategies, "categories": categories, "point": point}
        given = {name: value for name, value in asked.items() if value is not None}
        for name, value in given.items():
            if not isinstance(value, (str, list, tuple)):
                raise LabError(f"{name} must be a name or a list of names, got {value!r}")
            for one in [value] if isinstance(value, str) else value:
                one_of(name, one, tuple(self._controls[name].options))
        self._quiet = True  # one drawing at the end, not one for each control
        for name, value in given.items():
            self._controls[name].value = value
        self._quiet = False
        self._draw()

    def show(self, **settings: Any) -> None:
        """Display the explorer, with a picture of what it shows for viewers that have no kernel."""
        self.set(**settings)
        rows = self._within()
        rows = rows[rows["strategy"].isin([BASELINE, *self.strategies.value])]
        pictures = tradeoff_picture(rows), lost_picture(self._task, self.lost, self._title())
        show_widget(self.box, _stacked([to_png(picture) for picture in pictures]), self._title())

    @property
    def _picked(self) -> tuple[str, ...]:
        """Categories; all where none is picked."""
        return self.categories.value or self._start["categories"]

    def _within(self) -> pd.DataFrame:
        if self._picked not in self._seen:
            self._seen[self._picked] = within(self._rows, self._answers, self._task, self._picked)
        return self._seen[self._picked]

    def _figure(self) -> go.Figure:
        return tradeoff_figure(self._within(), self.strategies.value, self.point.value)

    def _title(self) -> str:
        where = "" if len(self._picked) == len(self._task.categories) else f" in {', '.join(self._picked)}"
        return f"{self.point.value}: {len(self.lost)} questions lost{where} that the bare model answers"

    def _clicked(self, trace: go.Scatter, points: Any, state: Any) -> None:
        name = html.unescape(trace.name)
        if points.point_inds and name in self._start["strategies"]:
            self.point.value = f"{name} at {html.unescape(trace.customdata[points.point_inds[0]])}"

    def _draw(self, change: dict[str, Any] | None = None) -> None:
        if self._quiet:
            return
        new = self._figure()
        with self.widget.batch_update():
            for old, trace in zip(self.widget.data, new.data, strict=True):
                old.update(trace.to_plotly_json(), overwrite=True)
            self.widget.layout.shapes = new.layout.shapes
        sync(self.widget)
        self.text.value = _page(self._task, self.lost, self._title())


def _stacked(pngs: Sequence[bytes]) -> bytes:
    """PNGs one under the other."""
    images = [Image.open(BytesIO(png)).convert("RGB") for png in pngs]
    width = max(image.width for image in images)
    images = [image.resize((width, round(image.height * width / image.width))) for image in images]
    return _png(Image.fromarray(np.concatenate([np.asarray(image) for image in images])))


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
