"""Strategies and budgets side by side on benchmarks that lmms-eval runs, as one table."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from illava_lab.errors import LabError, reason
from illava_lab.lmms import harness
from illava_lab.lmms.asker import Asker
from illava_lab.lmms.installed import check_works
from illava_lab.lmms.requests import Answers
from illava_lab.measuring import distributed
from illava_lab.measuring.cost import Cost
from illava_lab.measuring.rows import OneOrSeveral, Row, baseline, check_out, wanted
from illava_lab.measuring.runlog import RunLog, model_settings
from illava_lab.measuring.statistics import paired_difference
from illava_lab.schedules.budget import DEFAULT_KEEP
from illava_lab.schedules.plan import Plan
from illava_lab.session.asked import check_count, check_flag
from illava_lab.session.lab import Lab, check_lab

COSTS = tuple(field.name for field in dataclasses.fields(Cost))
COLUMNS = (
    "task", "strategy", "keep", "flops", "preset", "schedule", "seed", "samples", "accuracy",
    "difference", "difference_low", "difference_high", "metric", "value", *COSTS, "seconds", "status",
)  # fmt: skip


def evaluate(
    lab: Lab,
    tasks: Sequence[str],
    strategy: OneOrSeveral | None = None,
    keep: float | Sequence[float] | None = None,
    *,
    flops: float | Sequence[float] | None = None,
    preset: str | Sequence[str] | None = None,
    schedule: Plan | Sequence[Plan] | None = None,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 1,
    frames: int = 8,
    graphs: bool = False,
    out: str | PathLike[str] | None = None,
) -> pd.DataFrame:
    """Let lmms-eval ask every strategy at every budget the questions of some tasks.

    What reduces is said as in `il.compare`, and "none" is always the first row of a task. A task that fails is a row
    whose `status` says why; the others go on.

    Args:
        tasks: names of the lab's tasks, Parquet files laid out like those, and names of lmms-eval's tasks and groups.
        limit: at most so many questions of each: of the lab's tasks those that `compare` takes, of others the first.
        seed: of the bootstrap, of strategies that have one, and of what lmms-eval draws.
        batch_size: prompts at once.
        frames: taken of a video that is a file.
        out: folder for `table.csv`, `run.jsonl` and answers. The same call goes on behind the last answer of one that
            was stopped, also with another number of processes.

    Returns:
        One row per task, strategy and budget. `accuracy` is the mean of what each question counts, its `difference`
        paired with the bare model's answers to the same questions, over whole images where the task says which belong
        together; NaN where the task's first metric counts all questions at once only. `value` is what lmms-eval
        reports for that metric. FLOPs, tokens and memory are those of a task's first question, `seconds` the mean time
        of a document on one process.

    Raises:
        LabError: bad arguments, before any work; or lmms-eval is not there.
    """
    check_lab(lab)
    version = check_works()
    asked = wanted(strategy, keep, flops, preset, schedule, default=(DEFAULT_KEEP,), seed=seed)
    seed, batch_size, frames = int(seed), check_count("batch_size", batch_size), check_count("frames", frames)
    limit = None if limit is None else check_count("limit", limit)
    check_flag("graphs", graphs)
    check_out(out)
    found = harness.find_tasks(tasks, limit)
    plan = [baseline(), *map(_unplanned, asked.rows(lab.model))]
    rows = {f"{task.label}: {row.label}": (task, row) for task in found for row in plan}
    folder = None if out is None else Path(out)
    log = None
    settings = model_settings(lab) | {"limit": limit, "seed": seed, "batch_size": batch_size, "graphs": graphs}
    settings |= {"frames": frames, "lmms_eval": version}
    if folder is not None and distributed.is_first():
        log = RunLog(folder, settings, "an evaluation", {label: row for label, (_, row) in rows.items()})
    entries: dict[str, dict[str, Any]] = {}
    for label, (task, row) in rows.items():
        entry = distributed.from_first(log.finished(label, row) if log else None)
        if entry is None:
            digest = distributed.from_first(log.digest(row) if log else "")
            values, parts = _measure(lab, task, row, label, digest, settings, folder)
            values, parts = distributed.from_first((values, parts))
            entry = {"row": values, "parts": parts}
            if log:
                log.add(label, row, values, parts=parts)
        entries[label] = entry
        if log:
            log.write_table(_table(rows, entries, seed))
    return _table(rows, entries, seed)


def _unplanned(row: Row) -> Row:
    """The same without the schedule that only a task's first question gives."""
    of_task = LabError("by the first question of each task")
    return row if row.given.flops is None else dataclasses.replace(row, schedule=of_task)


def _measure(
    lab: Lab, task: harness.Wanted, row: Row, label: str, digest: str, settings: dict[str, Any], folder: Path | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One row: what is common to its tasks, and what came of each of them."""
    values: dict[str, Any] = {"task": task.name, "strategy": row.name, **row.budget, "seed": settings["seed"]}
    try:
        kept = None if folder is None else folder / "answers"
        answers = Answers(kept, _file_name(label, digest, settings), distributed.number())
        asker = Asker(
            lab, row.strategy, row.given, settings["graphs"], settings["batch_size"], settings["frames"], answers,
            counting=distributed.is_first(),
        )  # fmt: skip
        name = f"{task.name}: {row.label}"
        scored = harness.run(task, asker, name, limit=settings["limit"], seed=settings["seed"], out=folder)
    except Exception as error:  # a stranger's task or strategy may fail in any way; the others go on
        return values | {"status": reason(error)}, []
    seconds = dict(distributed.gather(answers.seconds()))  # what was known before, every process knows
    parts = []
    for one in scored:
        own = [taken for key, taken in seconds.items() if key.startswith(f"{one.task} ")]
        costs = asker.costs.get(one.task)
        parts.append(
            dataclasses.asdict(one)
            | (dict.fromkeys(COSTS, math.nan) if costs is None else dataclasses.asdict(costs))
            | {"seconds": float(np.mean(own)) if own else math.nan}
        )
    return values | {"status": "ok"}, parts


def _file_name(label: str, digest: str, settings: dict[str, Any]) -> str:
    return hashlib.sha256(repr((label, digest, sorted(settings.items()))).encode()).hexdigest()[:16]


def _table(rows: dict[str, tuple[harness.Wanted, Row]], entries: dict[str, dict[str, Any]], seed: int) -> pd.DataFrame:
    """All finished rows, each task's together, with differences to its bare model."""
    lines: list[dict[str, Any]] = []
    bare: dict[tuple[str, str], dict[str, Any]] = {}
    for label, (task, _) in rows.items():
        if label not in entries:
            continue
        values, parts = entries[label]["row"], entries[label]["parts"]
        if not parts:
            lines.append(values)
        for part in parts:
            first = bare.setdefault((task.name, part["task"]), part)
            lines.append({name: part[name] for name in part if name in COLUMNS} | _accuracy(part, first, seed)
                         | {name: values[name] for name in values if name != "task"})  # fmt: skip
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _accuracy(part: dict[str, Any], bare: dict[str, Any], seed: int) -> dict[str, Any]:
    scores, clusters = _flat(part)
    own = {"samples": len(scores) or len(part["answers"])}
    before, _ = _flat(bare)
    if not scores:
        return own
    out = own | {"accuracy": float(np.mean(scores))}
    if len(before) != len(scores):
        return out
    difference = paired_difference(np.array(scores), np.array(before), clusters, seed=seed)
    return out | {
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }


def _flat(part: dict[str, Any]) -> tuple[list[float], list[str]]:
    """Of each question its score, and what it stands or falls with."""
    pairs = [(one, name) for own, name in zip(part["scores"], part["clusters"], strict=False) for one in own]
    return [score for score, _ in pairs], [name for _, name in pairs]
