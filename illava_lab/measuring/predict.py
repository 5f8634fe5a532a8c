"""Answers to the questions of a task, and which of them are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd

from illava_lab.errors import LabError
from illava_lab.measuring.batches import Batch, batches
from illava_lab.measuring.tasks import Task, check_task
from illava_lab.models.frames import check_takes_videos
from illava_lab.session.asked import check_count
from illava_lab.session.lab import Lab, check_lab
from illava_lab.session.prompt import Inputs
from illava_lab.session.room import check_prompt, positions_of
from illava_lab.session.talk import talk


def predict(lab: Lab, task: Task, batch_size: int = 8, done: Callable[[int], object] | None = None) -> list[str]:
    """Greedy answers to all questions of a task; inside an `attach` block, with that reduction.

    The turns of a conversation are asked as in `il.chat`: in their order, and the model hears its own answers.

    Args:
        batch_size: questions, or conversations, that are answered at once.
        done: called after each batch with its number of questions, for a progress bar.

    Returns:
        One answer for each row of `task.samples`, in their order.

    Raises:
        LabError: no Task, a batch size that is no whole number of at least 1, a task that shows what the model does
            not take, or as `Lab.answer`.
    """
    check_lab(lab)
    batch_size = check_count("batch_size", batch_size)
    if done is not None and not callable(done):
        raise LabError(f"done must be a function that takes a number of questions, got {done!r:.80}")
    check_taken(lab, check_task(task))
    said = dict(answers(lab, task, batches(task, batch_size), done))
    return [said[row] for row in range(len(task))]


def answers(
    lab: Lab, task: Task, asked: Iterable[Batch], done: Callable[[int], object] | None = None
) -> list[tuple[int, str]]:
    """The same for some batches (see `batches`): rows of `task.samples` with the answers to them."""
    out: list[tuple[int, str]] = []
    questions, image_ids = task.samples["question"].tolist(), task.samples["image_id"].tolist()
    longest = answer_tokens(lab, task)
    for batch in asked:
        shown = {image_id: task.shown(image_id) for image_id in dict.fromkeys(image_ids[rows[0]] for rows in batch)}
        images = [shown[image_ids[rows[0]]] for rows in batch]
        turns = [[questions[row] for row in rows] for rows in batch]
        if task.conversations:
            said = talk(lab, images, turns)
        else:
            said = [[one] for one in lab.answer(images, [own[0] for own in turns], max_new_tokens=longest)]
        found = [pair for rows, own in zip(batch, said, strict=True) for pair in zip(rows, own, strict=True)]
        out += found
        if done is not None:
            done(len(found))
    return out


def prompt_of(lab: Lab, task: Task, row: int, times: int = 1) -> Inputs:
    """Model inputs of one question, `times` over."""
    sample = task.samples.iloc[row]
    return lab.inputs([task.shown(sample["image_id"])] * times, [sample["question"]] * times)


def check_taken(lab: Lab, task: Task) -> None:
    """Refuse a task before any work if the model takes no videos, or has too few positions for what it shows.

    The positions are those of the question that shows the most pictures; `Lab.answer` looks at all.

    Raises:
        LabError: names the model's family, or both numbers.
    """
    if task.kind == "frames":
        check_takes_videos(lab.model.config, lab.source)
    pictures = [len(task.encoded(image_id)) for image_id in task.samples["image_id"]]
    most = pictures.index(max(pictures))
    check_prompt(lab.model, positions_of(lab.model, prompt_of(lab, task, most)))


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
    return np.array([is_right(said, answer) for said, answer in zip(answers, right, strict=True)])


def is_right(said: str, answer: str) -> bool:
    """Whether an answer is the right one, but for case and for space at the ends."""
    return said.strip().lower() == answer.strip().lower()


def by_category(right: np.ndarray, task: Task) -> dict[str, float]:
    """Category -> share of right answers."""
    return pd.Series(right).groupby(task.samples["category"]).mean().to_dict()
