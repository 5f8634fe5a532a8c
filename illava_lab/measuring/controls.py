"""What a task gives away: how far one gets without looking at what it shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from illava_lab.errors import LabError
from illava_lab.measuring.predict import correct, predict
from illava_lab.measuring.tasks import Task, check_task
from illava_lab.session.lab import Lab, check_lab

ALL = "all"


def controls(lab: Lab, task: Task, batch_size: int = 8) -> pd.DataFrame:
    """Exact match beside two controls that see nothing, by category; inside an `attach` block, with that reduction.

    An accuracy says that a model looks only as far as it is above both.

    Args:
        batch_size: as in `predict`.

    Returns:
        One row for each category, in alphabetical order, and "all" at the end, with the columns `category`,
        `questions`, `accuracy` of the model, `most_frequent` (what always giving the most frequent right answer of the
        category reaches, on these same questions) and `other_images` (what the model reaches if every question comes
        with what another image_id shows: the next one with as many pictures, the first after the last).

    Raises:
        LabError: as `predict`, or a task that shows the same in all its questions.
    """
    check_lab(lab)
    others = with_other_images(check_task(task))
    measured = {
        "accuracy": correct(predict(lab, task, batch_size), task),
        "most_frequent": _most_frequent(task),
        "other_images": correct(predict(lab, others, batch_size), task),
    }
    categories = task.samples["category"]
    by_category = pd.DataFrame(measured).groupby(categories.to_numpy()).mean()
    overall = pd.DataFrame({name: [right.mean()] for name, right in measured.items()}, index=[ALL])
    table = pd.concat([by_category, overall]).rename_axis("category").reset_index()
    sizes = categories.value_counts()
    table.insert(1, "questions", [*(int(sizes[name]) for name in by_category.index), len(task)])
    return table


def with_other_images(task: Task) -> Task:
    """The same questions, each with what another image_id shows.

    Raises:
        LabError: there is no other one.
    """
    image_ids = list(dict.fromkeys(task.samples["image_id"]))
    if len(image_ids) < 2:
        raise LabError("task must show at least two different things, so that each can take the place of another")
    alike: dict[int, list[str]] = {}
    for image_id in image_ids:
        alike.setdefault(len(task.encoded(image_id)), []).append(image_id)
    others = {own: other for group in alike.values() for own, other in zip(group, [*group[1:], group[0]], strict=True)}
    for number, own in enumerate(image_ids):  # the only one with as many pictures
        if others[own] == own:
            others[own] = image_ids[(number + 1) % len(image_ids)]
    return replace(task, images={own: task.images[other] for own, other in others.items()})


def _most_frequent(task: Task) -> np.ndarray:
    """(questions,) bool: the right answer is the most frequent one of its category; case does not count."""
    answers = task.samples["answer"].str.strip().str.lower()
    most = answers.groupby(task.samples["category"]).transform(lambda own: own.value_counts().index[0])
    return (answers == most).to_numpy()
