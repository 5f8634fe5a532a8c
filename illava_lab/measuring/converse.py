"""The questions of a task, asked as conversations."""

from __future__ import annotations

from dataclasses import replace

from illava_lab.hooks.attach import attach
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.measuring.batches import first_row
from illava_lab.measuring.predict import check_taken, predict, prompt_of
from illava_lab.measuring.tasks import Task, check_task
from illava_lab.schedules.budget import AnyStrategy, choose
from illava_lab.schedules.plan import Plan
from illava_lab.session.asked import check_count
from illava_lab.session.lab import Lab, check_lab
from illava_lab.session.prompt import schedule_for


def converse(
    lab: Lab,
    task: Task,
    strategy: AnyStrategy | None = None,
    keep: float | None = None,
    *,
    flops: float | None = None,
    preset: str | None = None,
    schedule: Plan | None = None,
    batch_size: int = 8,
) -> list[str]:
    """Answers to the questions of a task, those about one image asked one after the other in one conversation.

    `correct` counts them, as it does those of `predict`. That asks every question first, unless the task itself is one
    of conversations: then both do the same.

    Args:
        strategy, keep, flops, preset, schedule: as for `Lab.ask`; FLOPs are those of the first question.
        batch_size: conversations that are held at once.

    Returns:
        One answer for each row of `task.samples`, in their order.

    Raises:
        LabError: as `predict` and `chat`.
    """
    check_lab(lab)
    talks = _as_conversations(check_task(task))
    chosen, budget = choose(strategy, keep, flops, preset, schedule)
    batch_size = check_count("batch_size", batch_size)
    check_taken(lab, talks)
    with one_at_a_time(lab.model):
        inputs = {} if budget.flops is None else prompt_of(lab, talks, first_row(talks))
        with attach(lab.model, chosen, schedule_for(lab.model, chosen, budget, inputs)):
            return predict(lab, talks, batch_size)


def _as_conversations(task: Task) -> Task:
    """The same with turns in the order of its rows, where it has none."""
    if task.conversations:
        return task
    turns = task.samples.groupby("image_id", sort=False).cumcount()
    return replace(task, samples=task.samples.assign(turn=turns))
