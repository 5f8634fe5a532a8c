"""compare: strategies and budgets side by side on the same questions, as one table."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from tqdm.auto import tqdm

from illava_lab import measure
from illava_lab.attach import attach
from illava_lab.budget import budget_label
from illava_lab.errors import LabError
from illava_lab.evaluate import Task, by_category, correct, load_task, paired_difference, predict
from illava_lab.families import describe
from illava_lab.lab import Lab
from illava_lab.registry import get_strategy, make_strategy
from illava_lab.schedule import Schedule
from illava_lab.strategy import Strategy

BEFORE_CATEGORIES = ("strategy", "keep", "flops", "seed", "samples", "accuracy")
AFTER_CATEGORIES = (
    "difference", "difference_low", "difference_high",
    "tokens", "tokens_encoder", "tokens_llm",
    "prefill_flops", "prefill_ratio", "prefill_ratio_low", "prefill_ratio_high",
    "decode_ratio", "decode_ratio_low", "decode_ratio_high",
    "peak_bytes", "cache_bytes", "status",
)  # fmt: skip
BASELINE = "none"
DEFAULT_KEEP = (0.7, 0.5, 0.3)


def compare(
    lab: Lab,
    strategies: Sequence[str | Strategy | type[Strategy]],
    keep: Sequence[float] | float | None = None,
    *,
    flops: Sequence[float] | float | None = None,
    task: str | PathLike | Task = "test",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    timing: bool = True,
    out: str | PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Run every strategy at every budget on the same questions.

    The bare model ("none") is always the first row, once, and every other row is compared with it. A strategy that
    fails is a row whose `status` says why; the others go on.

    Args:
        strategies: registered names, Strategy classes or instances (for settings other than the default ones).
        keep: fractions of the visual tokens that the last LLM layer sees; 0.7, 0.5 and 0.3 if no budget is given.
        flops: fractions of the bare model's prefill FLOPs, for the first question; see `Schedule.for_budget`. Given with
            `keep`, its rows come after those.
        task: "test", "validation", the path of a Parquet file, or a Task.
        limit: at most so many questions, of whole images taken evenly over the task.
        seed: of the bootstrap, and of strategies that have a `seed` and are not given as instances.
        batch_size: questions per batch, for the answers and for the timings.
        timing: False leaves the columns of time empty (NaN).
        out: folder for `table.csv` and `run.jsonl` (every finished row with its answers). The same call goes on where
            an earlier one was stopped; a row is measured again only if it failed or its strategy's code changed.
        progress: show progress bars, on stderr, for what takes longer than two seconds.

    Returns:
        One row per strategy and budget. Accuracies and differences are fractions, `tokens` means over layers,
        `prefill_flops`, `cache_bytes` and `peak_bytes` (CUDA only) are those of the first question alone,
        `prefill_ratio` and `decode_ratio` are times of a batch as multiples of those of "none" (median over rounds;
        low and high hold the middle half of them). `keep` and `flops` are what was wanted, NaN where the other was.

    Raises:
        LabError: bad arguments, before any work; or the bare model itself fails.
    """
    named, budgets = _named_all(strategies, seed), _budgets(keep, flops)
    _check_count("batch_size", batch_size)
    task = (task if isinstance(task, Task) else load_task(task)).limited(limit)
    task.check_images()
    plan = _plan(lab, named, budgets, task)
    store, done = None, {}
    if out is not None:
        store = _Store(Path(out), _settings(lab, task, limit=limit, seed=seed, batch_size=batch_size, timing=timing))
        done = {row.label: entry for row in plan if (entry := store.finished(row))}
    todo = [row for row in plan if row.label not in done]

    speeds = _speeds(lab, task, plan, todo, batch_size, progress) if timing and todo else {}
    rows = {label: entry["row"] for label, entry in done.items()}
    baseline = np.array(done[plan[0].label]["right"]) if plan[0].label in done else None
    runs = sum(isinstance(row.schedule, Schedule) for row in todo)
    with _bar(len(task) * runs, "answers", "question", progress) as bar:
        for row in todo:
            bar.set_postfix_str(row.label)
            right, answers = None, None
            try:
                values, answers = _measure(lab, task, row, batch_size, bar)
                right = correct(answers, task)
                baseline = right if row.name == BASELINE else baseline
                values |= _ratios(speeds, row) | _accuracy(right, baseline, task, seed) | {"status": "ok"}
            except Exception as error:  # a stranger's strategy may fail in any way; the others go on
                if row.name == BASELINE:
                    raise LabError(f"the bare model fails on this task: {_reason(error)}") from error
                values = {"status": _reason(error)}
            values |= {"strategy": row.name, **row.budget, "seed": seed, "samples": len(task)}
            rows[row.label] = values
            if store:
                store.add(row, values, answers, right)
                store.write_table(_table([rows[r.label] for r in plan if r.label in rows], task))
    table = _table([rows[row.label] for row in plan], task)
    if store:
        store.write_table(table)
    return table


# ---------------------------------------------------------------------------------------------- what is to be done
@dataclass(frozen=True, eq=False)
class _Row:
    """One row to be: a strategy at a budget, with the schedule, or with the reason why there is none."""

    name: str
    kind: str  # "keep" or "flops"
    share: float
    strategy: Strategy
    schedule: Schedule | Exception

    @property
    def label(self) -> str:
        return f"{self.name} {self.share}" if self.kind == "keep" else f"{self.name} {self.kind} {self.share}"

    @property
    def budget(self) -> dict[str, float]:
        return {"keep": math.nan, "flops": math.nan, self.kind: self.share}


def _named_all(strategies: Any, seed: int) -> list[tuple[str, Strategy]]:
    """Names in the table with their instances, the baseline first."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise LabError(f"seed must be a whole number of at least 0, got {seed!r}")
    strategies = [strategies] if isinstance(strategies, (str, Strategy, type)) else list(strategies)
    if not strategies:
        raise LabError("strategies must name at least one strategy, got an empty list")
    named = [(BASELINE, get_strategy(BASELINE)())]
    for given in strategies:
        name, strategy = _named(given, seed)
        if name == BASELINE:
            continue
        if name in dict(named):
            raise LabError(f"strategies: {name} is given twice")
        named.append((name, strategy))
    return named


def _budgets(keep: Any, flops: Any) -> list[tuple[str, float]]:
    """("keep" or "flops", fraction) of every row that a strategy gets."""
    out = []
    for kind, given in (("keep", DEFAULT_KEEP if keep is None and flops is None else keep), ("flops", flops)):
        shares = [] if given is None else [given] if isinstance(given, (int, float)) else list(given)
        if given is not None and not shares:
            raise LabError(f"{kind} must hold at least one fraction, got an empty list")
        for share in shares:
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
                raise LabError(f"{kind} must be fractions in (0, 1], got {share!r}")
        if len(set(shares)) < len(shares):
            raise LabError(f"{kind} holds a fraction twice: {shares}")
        out += [(kind, float(share)) for share in shares]
    return out


def _plan(lab: Lab, named: list[tuple[str, Strategy]], budgets: list[tuple[str, float]], task: Task) -> list[_Row]:
    rows = [_Row(BASELINE, "keep", 1.0, named[0][1], Schedule())]
    text = _text_tokens(lab, task) if "flops" in dict(budgets) else 0
    for name, strategy in named[1:]:
        for kind, share in budgets:
            try:
                schedule: Schedule | Exception = Schedule.for_budget(
                    strategy, lab.model, text_tokens=text, **{kind: share}
                )
            except Exception as error:  # not every method reaches every budget on every model
                schedule = error
            rows.append(_Row(name, kind, share, strategy, schedule))
    return rows


def _first(lab: Lab, task: Task, times: int = 1) -> dict[str, torch.Tensor]:
    """Model inputs of the first question, by which costs and times are taken, `times` over."""
    sample = task.samples.iloc[0]
    return lab.inputs([task.image(sample["image_id"])] * times, [sample["question"]] * times)


def _text_tokens(lab: Lab, task: Task) -> int:
    """Tokens of the first prompt that are not visual."""
    visual = torch.tensor(list(describe(lab.model).placeholders.values()), device=lab.model.device)
    return int((~torch.isin(_first(lab, task)["input_ids"], visual)).sum())


def _named(given: Any, seed: int) -> tuple[str, Strategy]:
    """The name in the table, and the instance: settings that differ from the default ones are part of the name."""
    if isinstance(given, Strategy):
        settings = [f for f in dataclasses.fields(given) if getattr(given, f.name) != f.default]
        inside = ", ".join(f"{f.name}={getattr(given, f.name)!r}" for f in settings)
        return f"{given.name}({inside})" if inside else given.name, given
    strategy = make_strategy(given)
    if any(f.name == "seed" for f in dataclasses.fields(strategy)):
        strategy = dataclasses.replace(strategy, seed=seed)
    return strategy.name, strategy


def _check_count(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LabError(f"{name} must be a whole number of at least 1, got {value!r}")


# ---------------------------------------------------------------------------------------------- doing it
def _speeds(
    lab: Lab, task: Task, plan: list[_Row], todo: list[_Row], batch_size: int, progress: bool
) -> dict[str, measure.Speed | Exception]:
    """Times of the rows to do, side by side with the baseline, on the first question repeated to a batch."""
    rows = [row for row in plan if row.name == BASELINE or (row in todo and isinstance(row.schedule, Schedule))]
    inputs, rounds = _first(lab, task, batch_size), 5
    with _bar(len(rows) * (rounds + 1), "timing", "run", progress) as bar:
        configurations = [(row.strategy, row.schedule) for row in rows]
        speeds = measure.speeds(lab.model, inputs, configurations, rounds=rounds, done=bar.update)
    return {row.label: speed for row, speed in zip(rows, speeds, strict=True)}


def _measure(lab: Lab, task: Task, row: _Row, batch_size: int, bar: tqdm) -> tuple[dict[str, Any], list[str]]:
    """What the first question costs, and the answers to all."""
    if isinstance(row.schedule, Exception):
        raise row.schedule
    cost = measure.cost(lab.model, _first(lab, task), row.strategy, row.schedule)
    with attach(lab.model, row.strategy, row.schedule):
        answers = predict(lab, task, batch_size, done=bar.update)
    return dataclasses.asdict(cost), answers


def _ratios(speeds: dict[str, measure.Speed | Exception], row: _Row) -> dict[str, float]:
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


def _reason(error: Exception) -> str:
    """One line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, LabError) else f"{type(error).__name__}: {text}"


def _bar(total: int, what: str, unit: str, progress: bool) -> tqdm:
    return tqdm(total=total, desc=what, unit=unit, delay=2, disable=not progress, dynamic_ncols=True)


# ---------------------------------------------------------------------------------------------- stopping and going on
def _settings(lab: Lab, task: Task, **given: Any) -> dict[str, Any]:
    """What rows must have in common to stand in one table."""
    # The first values of every parameter tell two checkpoints apart without reading gigabytes.
    weights = hashlib.sha256()
    for parameter in lab.model.parameters():
        weights.update(parameter.detach().flatten()[:16].float().cpu().numpy().tobytes())
    device = lab.model.device
    return {
        "model": lab.source,
        "weights": weights.hexdigest()[:16],
        "dtype": str(lab.model.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "task": task.name,
        **given,
        "questions": task.digest(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


class _Store:
    """The folder of one comparison.

    `run.jsonl` is what a stopped run goes on from: its first line holds the settings, then comes one line per finished
    row, appended at once. `table.csv` is made from it.

    Raises:
        LabError: the folder cannot be written, or it holds another comparison.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self._log = folder, folder / "run.jsonl"
        self._entries: dict[str, dict[str, Any]] = {}
        lines: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._log.exists():
                lines = self._log.read_text(encoding="utf-8").splitlines()
            elif (folder / "table.csv").exists():
                raise LabError(f"{folder} holds a table.csv but no run.jsonl to go on from: name another folder")
            entries = [entry for entry in map(_parse, lines) if entry is not None]
            if entries:
                self._check(entries[0].get("settings", {}), settings)
            self._entries = {entry["label"]: entry for entry in entries[1:]}
            # Also cuts off a last line that a killed run left unfinished.
            write_whole(self._log, "".join(_line(entry) for entry in [{"settings": settings}, *self._entries.values()]))
        except OSError as error:
            raise LabError(f"out: cannot write to {folder} ({error.strerror or error})") from None

    def _check(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        # Through JSON and back, as the stored ones went.
        for key, value in json.loads(json.dumps(now)).items():
            if before.get(key) != value:
                raise LabError(
                    f"{self.folder} holds a comparison with {key}={before.get(key)!r}, this one has {value!r}: "
                    "name another folder, or delete that one"
                )

    def finished(self, row: _Row) -> dict[str, Any] | None:
        """The stored entry of a row, if it is complete and nothing about the row changed."""
        entry = self._entries.get(row.label)
        valid = entry and entry["row"]["status"] == "ok" and entry["digest"] == _digest(row)
        return entry if valid else None

    def add(self, row: _Row, values: dict[str, Any], answers: list[str] | None, right: np.ndarray | None) -> None:
        """Append a finished row, safe on the disk before this returns."""
        entry = {
            "label": row.label,
            "digest": _digest(row),
            "schedule": repr(row.schedule),
            "row": values,
            "right": None if right is None else right.tolist(),
            "answers": answers,
        }
        with self._log.open("a", encoding="utf-8") as log:
            log.write(_line(entry))
            log.flush()
            os.fsync(log.fileno())

    def write_table(self, table: pd.DataFrame) -> None:
        write_whole(self.folder / "table.csv", table.to_csv(index=False))


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _digest(row: _Row) -> str:
    """A fingerprint of settings, code and schedule: whoever edits a method must not be shown its old row."""
    text = f"{row.strategy!r} {row.schedule!r} {_code(type(row.strategy))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _code(cls: type) -> str:
    try:
        return inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):  # a notebook's classes are in no file, but their methods are in its cells
        out = []
        for member in vars(cls).values():
            try:
                out.append(inspect.getsource(member))
            except (OSError, TypeError):
                continue
        return "".join(out)


def write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


# ---------------------------------------------------------------------------------------------- reading it
def summary(table: pd.DataFrame) -> str:
    """The main columns of a table from `compare`, for people: at most 120 characters wide.

    Accuracy and difference are in percent and percentage points, with the 95 % interval of the difference; FLOPs and
    prefill time are shares of those of "none", tokens the mean over all layers.
    """
    full = table.loc[table["strategy"] == BASELINE, "prefill_flops"].iloc[0]
    lines = [("strategy", "budget", "accuracy %", "difference (95 %)", "tokens", "FLOPs", "prefill time", "cache KB")]
    for row in table[table["status"] == "ok"].itertuples():
        lines.append(
            (
                _short(row.strategy),
                "" if row.strategy == BASELINE else budget_label(row),
                f"{row.accuracy * 100:.1f}",
                "" if row.strategy == BASELINE else _interval(row, "difference", "{:+.1f}", 100),
                f"{row.tokens:.0f}",
                f"{row.prefill_flops / full:.2f}",
                _interval(row, "prefill_ratio", "{:.2f}"),
                f"{row.cache_bytes / 1000:.0f}",
            )
        )
    text = _aligned(lines)
    for row in table[table["status"] != "ok"].itertuples():
        text.append(f"{row.strategy} at {budget_label(row)}: {row.status}"[:140])
    return "\n".join(text)


def summary_by_category(table: pd.DataFrame) -> str:
    """Accuracy in percent for every category of question, for people."""
    columns = [column for column in table if column.startswith("accuracy_")]
    lines = [("strategy", "budget", "all", *(column.removeprefix("accuracy_") for column in columns))]
    for _, row in table[table["status"] == "ok"].iterrows():
        shares = (f"{row[column] * 100:.1f}" for column in ("accuracy", *columns))
        lines.append((_short(row["strategy"]), "" if row["strategy"] == BASELINE else budget_label(row), *shares))
    return "\n".join(_aligned(lines))


def _aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join([f"{{:<{widths[0]}}}", *(f"{{:>{width}}}" for width in widths[1:])])
    return [form.format(*line) for line in lines]


def _short(name: str) -> str:
    return name if len(name) <= 32 else name[:29] + "..."


def _interval(row: Any, column: str, form: str, scale: float = 1) -> str:
    """A value with its low and high, empty where it was not measured."""
    value, low, high = (getattr(row, name) * scale for name in (column, f"{column}_low", f"{column}_high"))
    if math.isnan(value):
        return ""
    if math.isnan(low):
        return form.format(value)
    return f"{form.format(value)} ({form.format(low)} to {form.format(high)})"
