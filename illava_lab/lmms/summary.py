"""Tables of `evaluate` for people to read."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from illava_lab.measuring.rows import BASELINE
from illava_lab.measuring.summary import aligned, budget_label

HEADS = ("strategy", "budget", "metric", "value", "accuracy %", "difference (95 %)", "tokens", "FLOPs", "s/document")


def summary(table: pd.DataFrame) -> str:
    """The main columns, task by task.

    Accuracy and difference are in percent and percentage points, with the paired 95 % interval of the difference; FLOPs
    are shares of those of "none", tokens the mean over all layers.
    """
    return "\n\n".join(_of_task(str(task), own) for task, own in table.groupby("task", sort=False))


def _of_task(task: str, table: pd.DataFrame) -> str:
    fine = table[table["status"] == "ok"]
    bare = fine[fine["strategy"] == BASELINE]
    full = float(bare["prefill_flops"].iloc[0]) if len(bare) else math.nan
    lines = [HEADS, *(_line(row, full) for row in fine.itertuples())]
    text = [_head(task, fine), *(aligned(lines) if len(fine) else [])]
    for row in table[table["status"] != "ok"].itertuples():
        text.append(f"{row.strategy} at {budget_label(row)}: {row.status}"[:200])
    return "\n".join(text)


def _head(task: str, fine: pd.DataFrame) -> str:
    return f"{task}: {int(fine['samples'].iloc[0])} questions" if len(fine) else task


def _line(row: Any, full: float) -> tuple[str, ...]:
    bare = row.strategy == BASELINE
    between = ""
    if not bare and not math.isnan(row.difference):
        between = f"{row.difference * 100:+.1f}"
        if not math.isnan(row.difference_low):
            between += f" ({row.difference_low * 100:+.1f} to {row.difference_high * 100:+.1f})"
    return (
        row.strategy,
        "" if bare else budget_label(row),
        row.metric,
        _figure(row.value, "{:.4g}"),
        _figure(row.accuracy * 100, "{:.1f}"),
        between,
        _figure(row.tokens, "{:.0f}"),
        _figure(row.prefill_flops / full, "{:.2f}"),
        _figure(row.seconds, "{:.2g}"),
    )


def _figure(value: float, form: str) -> str:
    return "" if math.isnan(value) else form.format(value)
