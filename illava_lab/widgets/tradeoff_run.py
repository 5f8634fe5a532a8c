"""What a comparison left in its folder, by category and question: the trade-off explorer without a widget."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from pathlib import Path

import pandas as pd

from illava_lab.errors import LabError, one_of
from illava_lab.measuring import loglines
from illava_lab.measuring.statistics import paired_difference
from illava_lab.measuring.summary import budget_label
from illava_lab.measuring.tasks import Task
from illava_lab.paths import is_file, quoted
from illava_lab.views.plots import BASELINE


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
