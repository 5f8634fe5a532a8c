"""The questions of a task, asked as conversations."""

from __future__ import annotations

from typing import Any

from illava_lab.measuring.tasks import Task
from illava_lab.method.strategy import Strategy
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.chat import chat
from illava_lab.session.lab import Lab


def converse(
    lab: Lab,
    task: Task,
    strategy: str | Strategy | type[Strategy] = "none",
    keep: float = 1.0,
    schedule: Schedule | None = None,
) -> list[str]:
    """Answers to the questions of a task, those about one image asked one after the other in one conversation.

    `evaluate.correct` counts them, as it does those of `evaluate.predict`, which asks every question first.

    Args:
        keep, schedule: as for `chat`.

    Returns:
        One answer for each row of `task.samples`, in their order.

    Raises:
        LabError: as `chat`.
    """
    said: dict[Any, str] = {}
    for name, rows in task.samples.groupby("image_id", sort=False):
        with chat(lab, task.image(name), strategy, keep, schedule) as talk:
            said |= {row.Index: talk.say(row.question).text for row in rows.itertuples()}
    return [said[row] for row in task.samples.index]
