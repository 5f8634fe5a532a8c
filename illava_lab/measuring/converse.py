"""The questions of a task, asked as conversations."""

from __future__ import annotations

from typing import Any

from illava_lab.errors import LabError
from illava_lab.measuring.tasks import Task
from illava_lab.schedules.budget import AnyStrategy
from illava_lab.schedules.plan import Plan
from illava_lab.session.chat import chat
from illava_lab.session.lab import Lab, check_lab


def converse(
    lab: Lab,
    task: Task,
    strategy: AnyStrategy | None = None,
    keep: float | None = None,
    *,
    flops: float | None = None,
    preset: str | None = None,
    schedule: Plan | None = None,
) -> list[str]:
    """Answers to the questions of a task, those about one image asked one after the other in one conversation.

    `correct` counts them, as it does those of `predict`, which asks every question first.

    Args:
        strategy, keep, flops, preset, schedule: as for `chat`.

    Returns:
        One answer for each row of `task.samples`, in their order.

    Raises:
        LabError: as `chat`, or no Task.
    """
    check_lab(lab)
    if not isinstance(task, Task):
        raise LabError(f"task must be a Task, such as load_task('test'), got {task!r}")
    said: dict[Any, str] = {}
    for name, rows in task.samples.groupby("image_id", sort=False):
        with chat(lab, task.image(name), strategy, keep, flops=flops, preset=preset, schedule=schedule) as talk:
            said |= {row.Index: talk.say(row.question).text for row in rows.itertuples()}
    return [said[row] for row in task.samples.index]
