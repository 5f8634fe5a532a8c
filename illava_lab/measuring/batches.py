"""Which questions of a task are asked together, and in which order."""

from __future__ import annotations

from illava_lab.measuring.tasks import Task

Batch = list[list[int]]
"""What stands side by side: of each the rows of `Task.samples` that are asked one after the other, one or all turns."""


def batches(task: Task, size: int) -> list[Batch]:
    """All questions of a task, `size` at a time: single ones in their order, or conversations with their turns.

    Videos stand beside videos of as many frames, because LLaVA-OneVision takes no others in one batch.
    """
    alike: dict[int, Batch] = {}
    for rows in _asked(task):
        image_id = task.samples["image_id"].iloc[rows[0]]
        frames = len(task.encoded(image_id)) if task.kind == "frames" else 0
        alike.setdefault(frames, []).append(rows)
    return [group[start : start + size] for group in alike.values() for start in range(0, len(group), size)]


def _asked(task: Task) -> Batch:
    if not task.conversations:
        return [[row] for row in range(len(task))]
    turns = task.samples["turn"].tolist()
    talks: dict[str, list[int]] = {}
    for row, image_id in enumerate(task.samples["image_id"]):
        talks.setdefault(image_id, []).append(row)
    return [sorted(rows, key=lambda row: turns[row]) for rows in talks.values()]


def first_row(task: Task) -> int:
    """The question by which costs are taken: the first, or the first turn of the first conversation."""
    return _asked(task)[0][0]
