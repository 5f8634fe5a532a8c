"""Answers to the questions of a task, and which of them are right."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from illava_lab.errors import LabError
from illava_lab.measuring.tasks import Task
from illava_lab.session.asked import check_count
from illava_lab.session.lab import Lab, check_lab


def predict(
    lab: Lab,
    task: Task,
    batch_size: int = 8,
    done: Callable[[int], object] | None = None,
    starts: Sequence[int] | None = None,
) -> list[str]:
    """Greedy answers to all questions of a task; inside an `attach` block, with that reduction.

    Args:
        done: called after each batch with its number of questions, for a progress bar.
        starts: the batches to do, each by its first question; None for all.

    Raises:
        LabError: no Task, a batch size that is no whole number of at least 1, or as `Lab.answer`.
    """
    check_lab(lab)
    if not isinstance(task, Task):
        raise LabError(f"task must be a Task, such as load_task('test'), got {task!r}")
    batch_size = check_count("batch_size", batch_size)
    longest = answer_tokens(lab, task)
    answers: list[str] = []
    for start in range(0, len(task), batch_size) if starts is None else starts:
        batch = task.samples.iloc[start : start + batch_size]
        pictures = {image_id: task.image(image_id) for image_id in batch["image_id"].unique()}
        images = [pictures[image_id] for image_id in batch["image_id"]]
        answers += lab.answer(images, list(batch["question"]), max_new_tokens=longest)
        if done is not None:
            done(len(batch))
    return answers


def answer_tokens(lab: Lab, task: Task) -> int:
    """New tokens after which no answer can be right any more.

    That is the longest right one, a space before it, and an end or a word too much after it.
    """
    encoded = lab.processor.tokenizer(list(task.samples["answer"].unique()), add_special_tokens=False)["input_ids"]
    return max(map(len, encoded)) + 2


def correct(answers: Sequence[str], task: Task) -> np.ndarray:
    """(questions,) bool: exact match, but for case and for space at the ends.

    Raises:
        LabError: no texts, or not as many as the task has questions; or no task.
    """
    if not isinstance(task, Task):
        raise LabError(f"task must be a Task, such as il.load_task gives, got {type(task).__name__}")
    listed = isinstance(answers, (Sequence, pd.Series, np.ndarray))
    texts = listed and all(isinstance(answer, str) for answer in answers)
    if isinstance(answers, str) or not texts or len(answers) != len(task):
        raise LabError(f"answers must be a list of {len(task)}, one for each question of the task, got {answers!r:.80}")
    right = task.samples["answer"]
    return np.array([a.strip().lower() == b.strip().lower() for a, b in zip(answers, right, strict=True)])


def by_category(right: np.ndarray, task: Task) -> dict[str, float]:
    """Category -> share of right answers."""
    return pd.Series(right).groupby(task.samples["category"]).mean().to_dict()
