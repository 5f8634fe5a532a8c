"""Tables of `compare` for people to read."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd

from illava_lab.errors import LabError
from illava_lab.measuring.rows import BASELINE

MEASURED_AGAIN = "measured again"
"""Key of a table's `attrs`: labels of rows that were stored, but belong to code that has changed since."""


NOMINAL = 0.02
"""Where the share of tokens that was kept differs by more from what was asked for, a line says so."""


def baseline_of(table: pd.DataFrame, *columns: str) -> pd.Series:
    """The row of the bare model in a table from `compare`.

    Args:
        columns: what the table needs besides.

    Raises:
        LabError: no table, one that lacks a column, or one without that row.
    """
    if not isinstance(table, pd.DataFrame):
        raise LabError(f"table must be a table from compare, got {table!r:.80}")
    lacks = [column for column in ("strategy", "status", *columns) if column not in table]
    if lacks:
        raise LabError(f"the table lacks the column {lacks[0]!r}; pass one from compare")
    found = table[(table["strategy"] == BASELINE) & (table["status"] == "ok")]
    if found.empty:
        raise LabError('the table has no row of strategy "none" to compare with')
    return found.iloc[0]


def summary(table: pd.DataFrame) -> str:
    """The main columns of a table from `compare`, for people: at most 120 characters wide.

    Accuracy and difference are in percent and percentage points, with the 95 % interval of the difference; FLOPs and
    prefill time are shares of those of "none", tokens the mean over all layers.

    Raises:
        LabError: no table from `compare`.
    """
    full = baseline_of(table, "keep", "accuracy", "prefill_flops", "cache_bytes")["prefill_flops"]
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
    text = aligned(lines)
    for row in table[table["status"] != "ok"].itertuples():
        text.append(f"{row.strategy} at {budget_label(row)}: {row.status}"[:140])
    for row in table[table["status"] == "ok"].itertuples():
        kept = getattr(row, "kept", math.nan)
        if not math.isnan(row.keep) and abs(kept - row.keep) > NOMINAL:
            text.append(
                f"{row.strategy} at {budget_label(row)}: pictures kept {kept:.2f} of their tokens on the mean"[:140]
            )
    if again := table.attrs.get(MEASURED_AGAIN):
        text += textwrap.wrap(measured_again(again), 120)
    return "\n".join(text)


def measured_again(labels: Sequence[str]) -> str:
    """What is said of rows that were there, but were of other code."""
    return f"measured again, as the code changed since: {', '.join(labels)}"


def summary_by_category(table: pd.DataFrame) -> str:
    """Accuracy in percent for every category of question, for people.

    Raises:
        LabError: no table from `compare`.
    """
    baseline_of(table, "keep", "accuracy")
    columns = [column for column in table if column.startswith("accuracy_")]
    lines = [("strategy", "budget", "all", *(column.removeprefix("accuracy_") for column in columns))]
    for _, row in table[table["status"] == "ok"].iterrows():
        shares = (f"{row[column] * 100:.1f}" for column in ("accuracy", *columns))
        lines.append((_short(row["strategy"]), "" if row["strategy"] == BASELINE else budget_label(row), *shares))
    return "\n".join(aligned(lines))


def aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
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


def budget_label(row: Any) -> str:
    """What a row of a table was given, such as "keep 0.5" or "preset illava-image"."""
    for column, words in (("preset", "preset"), ("schedule", "schedule")):
        if isinstance(getattr(row, column, None), str):
            return f"{words} {getattr(row, column)}"
    return f"FLOPs {row.flops:g}" if math.isnan(row.keep) else f"keep {row.keep:g}"


def row_label(row: Any) -> str:
    """What tells a row from all others of its table: strategy and budget."""
    return f"{row.strategy} {budget_label(row)}"
