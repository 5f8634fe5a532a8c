"""compare: strategies and budgets side by side on the same questions, as one table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from illava_lab.errors import LabError, reason
from illava_lab.hooks.attach import attach
from illava_lab.measuring import distributed, measure
from illava_lab.measuring.batches import batches, first_row
from illava_lab.measuring.difference import keep_answers
from illava_lab.measuring.predict import answers, by_category, check_taken, correct, prompt_of
from illava_lab.measuring.rows import (
    BASELINE,
    OneOrSeveral,
    Row,
    baseline,
    check_batch,
    check_out,
    wanted,
)
from illava_lab.measuring.runlog import RunLog, model_settings
from illava_lab.measuring.statistics import paired_difference
from illava_lab.measuring.summary import MEASURED_AGAIN
from illava_lab.measuring.task_files import load_task
from illava_lab.measuring.tasks import Task
from illava_lab.models.layout import Layout
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import check_count, check_flag, check_question
from illava_lab.session.lab import Lab, check_lab

BEFORE_CATEGORIES = ("strategy", "keep", "flops", "preset", "schedule", "seed", "samples", "accuracy")
AFTER_CATEGORIES = (
    "difference", "difference_low", "difference_high",
    "tokens", "tokens_encoder", "tokens_llm", "kept",
    "prefill_flops", "prefill_ratio", "prefill_ratio_low", "prefill_ratio_high",
    "decode_ratio", "decode_ratio_low", "decode_ratio_high",
    "peak_bytes", "cache_bytes", "status",
)  # fmt: skip
DEFAULT_KEEPS = (0.7, 0.5, 0.3)


def compare(
    lab: Lab,
    strategy: OneOrSeveral | None = None,
    keep: float | Sequence[float] | None = None,
    *,
    flops: float | Sequence[float] | None = None,
    preset: str | Sequence[str] | None = None,
    schedule: Plan | Sequence[Plan] | None = None,
    task: str | PathLike[str] | Task = "test",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    timing: bool = True,
    graphs: bool = False,
    out: str | PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run every strategy at every budget on the same questions.

    The first five arguments may each be one or several; a strategy gets a row for every keep, every share of FLOPs and
    every schedule, in this order. The bare model ("none") is always the first row, once, and every other row is
    compared with it. A strategy that fails is a row whose `status` says why; the others go on.

    Args:
        strategy: registered names, Strategy classes or instances (for settings other than the default ones).
        keep: fractions of the visual tokens that the last LLM layer sees; 0.7, 0.5 and 0.3 if no budget is given.
        flops: fractions of the bare model's prefill FLOPs, for the first question; see `Schedule.for_budget`.
        preset: papers' settings by name, each a row with its own strategy; `il.presets` lists them.
        schedule: exact layers and amounts, for every strategy.
        task: the name of an embedded task or the path of a Parquet file (see `load_task`), or a Task. The turns of a
            conversation are asked as in `il.chat`.
        limit: at most so many questions, of whole images taken evenly over the task.
        seed: of the bootstrap, and of strategies that have a `seed` and are not given as instances.
        batch_size: questions (or conversations) per batch, for the answers and for the timings.
        timing: False leaves the columns of time empty (NaN).
        graphs: on CUDA, with captured graphs; see `il.attach`.
        out: folder for `table.csv` and `run.jsonl` (every finished row with its answers). The same call goes on where
            an earlier one was stopped; a row is measured again only if it failed or the code that computed it changed,
            which a line on stderr and `il.summary` say. Code is what is loaded: the strategy with what it refers to,
            and the lab. Compiled extensions, files that a strategy reads, and objects that cannot be pickled are not
            seen.
        progress: show progress bars, on stderr, for what takes longer than two seconds.

    Returns:
        One row per strategy and budget. Accuracies and differences are fractions, `tokens` means over layers, `kept`
        the share of its visual tokens that a picture had left in the last LLM layer, as it was found, on the mean over
        the questions: what was asked for is nominal where pictures decide themselves.
        `prefill_flops`, `cache_bytes` and `peak_bytes` are those of the first question alone,
        `prefill_ratio` and `decode_ratio` are times of a batch as multiples of those of "none" (median over rounds;
        low and high hold the middle half of them). `keep`, `flops`, `preset` and `schedule` say which budget the row
        had. `il.difference` compares any two rows.

    Raises:
        LabError: bad arguments, before any work; or the bare model itself fails.
    """
    check_lab(lab)
    asked = wanted(strategy, keep, flops, preset, schedule, default=DEFAULT_KEEPS, seed=seed)
    seed, batch_size = int(seed), check_count("batch_size", batch_size)
    limit = None if limit is None else check_count("limit", limit)
    check_out(out)
    for name, value in (("timing", timing), ("graphs", graphs), ("progress", progress)):
        check_flag(name, value)
    task = (task if isinstance(task, Task) else load_task(task)).limited(limit)
    task.check_images()
    for question in task.samples["question"]:
        check_question(question)
    check_taken(lab, task)
    check_batch("batch_size", batch_size, _first(lab, task))
    plan = [baseline(), *asked.rows(lab.model, *(_prompt(lab, task) if asked.needs_prompt else ()))]
    log, done = None, {}
    if out is not None and distributed.is_first():
        given = {"task": task.name, "limit": limit, "seed": seed, "batch_size": batch_size, "timing": timing}
        given |= {"graphs": graphs}
        settings = model_settings(lab) | given | {"questions": task.digest()}
        log = RunLog(Path(out), settings, "a comparison", {row.label: row for row in plan})
        done = {row.label: entry for row in plan if (entry := log.finished(row.label, row))}
    done = distributed.from_first(done)
    todo = [row for row in plan if row.label not in done]

    timed = timing and todo and distributed.is_first()
    speeds = _speeds(lab, task, plan, todo, batch_size, graphs, progress) if timed else {}
    finished = {label: entry["row"] for label, entry in done.items()}
    rights = {label: np.array(entry["right"]) for label, entry in done.items()}
    runs = sum(isinstance(row.schedule, Schedule) for row in todo)
    with _bar(len(task) * runs, "answers", "question", progress) as bar:
        for row in todo:
            bar.set_postfix_str(row.label)
            right, said = None, None
            try:
                values, said = _measure(lab, task, row, batch_size, graphs, bar)
                right = rights[row.label] = correct(said, task)
                values |= _ratios(speeds, row) | _accuracy(right, rights[plan[0].label], task, seed) | {"status": "ok"}
            except Exception as error:  # a stranger's strategy may fail in any way; the others go on
                if row.name == BASELINE:
                    raise LabError(f"the bare model fails on this task: {reason(error)}") from error
                values = {"status": reason(error)}
            values |= {"strategy": row.name, **row.budget, "seed": seed, "samples": len(task)}
            finished[row.label] = values
            if log:
                log.add(row.label, row, values, right=None if right is None else right.tolist(), answers=said)
                log.write_table(_table([finished[r.label] for r in plan if r.label in finished], task))
    table = _table([finished[row.label] for row in plan], task)
    keep_answers(table, {row.label: rights[row.label] for row in plan if row.label in rights}, task, seed)
    if log and log.changed:
        table.attrs[MEASURED_AGAIN] = log.changed
    table = distributed.from_first(table)
    if log:
        log.write_table(table)
    return table


def _first(lab: Lab, task: Task, times: int = 1) -> dict[str, torch.Tensor]:
    """Model inputs of the first question, by which costs and times are taken, `times` over."""
    return prompt_of(lab, task, first_row(task), times)


def _prompt(lab: Lab, task: Task) -> tuple[int, list[Layout]]:
    """Text tokens of the first prompt, and what it shows."""
    inputs = _first(lab, task)
    return measure.text_tokens(lab.model, inputs), measure.layouts(lab.model, inputs)


def _speeds(
    lab: Lab, task: Task, plan: list[Row], todo: list[Row], batch_size: int, graphs: bool, progress: bool
) -> dict[str, measure.Speed | Exception]:
    """Times of the rows to do, side by side with the baseline, on the first question repeated to a batch."""
    timed = [row for row in plan if row.name == BASELINE or (row in todo and isinstance(row.schedule, Schedule))]
    inputs, rounds = _first(lab, task, batch_size), 5
    with _bar(len(timed) * (rounds + 1), "timing", "run", progress) as bar:
        configurations = [(row.strategy, row.planned) for row in timed]
        speeds = measure.speeds(lab.model, inputs, configurations, rounds=rounds, graphs=graphs, done=bar.update)
    return {row.label: speed for row, speed in zip(timed, speeds, strict=True)}


def _measure(
    lab: Lab, task: Task, row: Row, batch_size: int, graphs: bool, bar: tqdm
) -> tuple[dict[str, Any], list[str]]:
    """What the first question costs, and the answers to all, each process having answered its share."""
    schedule = row.planned
    failure, values, own = None, {}, []
    left: list[float] = []
    # Whole batches, so that every question has the neighbours that it has in a single process.
    share = distributed.share(batches(task, batch_size))
    try:
        values = dataclasses.asdict(measure.cost(lab.model, _first(lab, task), row.strategy, schedule))
        with attach(lab.model, row.strategy, schedule, graphs=graphs) as trace:

            def answered(questions: int) -> None:
                images = range(sum(trace.images_per_row))
                left.extend(trace.left(image) / trace.layout(image).tokens for image in images)
                bar.update(questions)

            own = answers(lab, task, share, answered)
    except Exception as error:
        failure = error
    # Whatever failed here, the other processes wait for an answer.
    reasons = distributed.gather([reason(failure) if failure else None])
    if failure:
        raise failure
    if any(reasons):
        raise LabError(next(filter(None, reasons)))
    shares = distributed.gather(left)
    values |= {"kept": float(np.mean(shares)) if shares else math.nan}
    return values, [text for _, text in sorted(distributed.gather(own))]


def _ratios(speeds: dict[str, measure.Speed | Exception], row: Row) -> dict[str, float]:
    """Times as multiples of those of the baseline; nothing if they were not measured."""
    out: dict[str, float] = {}
    if not speeds:
        return out
    own, bare = speeds[row.label], next(iter(speeds.values()))
    for result in (bare, own):
        if isinstance(result, Exception):
            raise result
    for kind in ("prefill", "decode"):
        found = measure.ratio(getattr(own, kind), getattr(bare, kind))
        out |= {f"{kind}_ratio": found.value, f"{kind}_ratio_low": found.low, f"{kind}_ratio_high": found.high}
    return out


def _accuracy(right: np.ndarray, baseline: np.ndarray, task: Task, seed: int) -> dict[str, float]:
    difference = paired_difference(right, baseline, task.samples["image_id"], seed=seed)
    return {
        "accuracy": float(right.mean()),
        **{f"accuracy_{category}": share for category, share in by_category(right, task).items()},
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
    }


def _table(rows: list[dict[str, Any]], task: Task) -> pd.DataFrame:
    categories = [f"accuracy_{category}" for category in task.categories]
    return pd.DataFrame(rows, columns=[*BEFORE_CATEGORIES, *categories, *AFTER_CATEGORIES])


def _bar(total: int, what: str, unit: str, progress: bool) -> tqdm:
    return tqdm(total=total, desc=what, unit=unit, delay=2, disable=not progress, dynamic_ncols=True)
