"""Tables of `bench` for people to read."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from illava_lab.measuring import measure
from illava_lab.measuring.bench_case import BARE
from illava_lab.measuring.rows import BASELINE
from illava_lab.measuring.summary import aligned, budget_label

_APART = "Against a loop by hand; prefill on host and device, and its work; a step on both, ms; images/s; largest batch"


def summary(table: pd.DataFrame) -> str:
    """The main columns of a table from `bench`, for people: at most 120 characters wide.

    "x bare" are multiples of the bare model's time, "limit" is the efficiency in percent, "x by hand" is the prefill
    time over that of a loop by hand that drops as many tokens; ± is half the width of the middle half of the rounds.
    "host" ends when the call returns, "device" goes from its first operation to its last. FLOPs are for one prompt, the
    other columns for the batch.
    """
    heads = (
        "strategy", "budget", "prefill ms", "x bare", "limit %", "decode ms", "x bare", "images/s", "GFLOP", "cache MB",
        "peak MB",
    )  # fmt: skip
    parts = []
    for (batch, length), part in table.groupby(["batch", "text_tokens"], sort=False):
        good = part[part["status"] == "ok"]
        lines = [heads]
        for row in good.itertuples():
            lines.append(
                (
                    *_named(row),
                    f"{row.prefill_ms:.1f}",
                    _spread(row, "prefill_ratio", 1, 3),
                    _spread(row, "efficiency", 100, 1),
                    f"{row.decode_ms:.2f}",
                    _number(row.decode_ratio, 2),
                    f"{row.images_per_second:.2f}",
                    f"{row.prefill_flops / 1e9:.4g}",
                    _number(row.cache_bytes / 1e6, 2),
                    _number(row.peak_bytes / 1e6, 1),
                )
            )
        parts.append("\n".join([f"Batch {batch}, {length} tokens of text", *aligned(lines)]))
        heading = f"Where the time goes, ms, with {part['new_tokens'].iloc[0]} decoding steps"
        if good["encoder_ms"].notna().any():
            parts.append("\n".join([heading, *aligned(_split(good))]))
        parts.append("\n".join([_APART, *aligned(_apart(good))]))
        failed = part[part["status"] != "ok"]
        parts += [f"{' '.join(_named(row))}: {row.status}"[:120] for row in failed.itertuples()]
    off = table["prefill_flops"] / table["prefill_flops_formula"] - 1
    if (off.abs() > 0.01).any():
        parts.append(f"FLOPs: the count and the closed form differ by up to {off.abs().max():.1%}")
    return "\n\n".join(parts)


def _split(good: pd.DataFrame) -> list[tuple[str, ...]]:
    """Amdahl's view: what of the whole each part takes; and what of the prefill goes into choosing what to keep."""
    lines: list[tuple[str, ...]] = [
        ("strategy", "budget", "encoder", "projector", "LLM prefill", "rest", "decode", "choosing")
    ]
    for row in good.itertuples():
        times = [getattr(row, f"{stage}_ms") for stage in measure.STAGES] + [row.decode_ms * row.new_tokens]
        shares = [f"{t:.1f} ({t / sum(times):.0%})" for t in times]
        prefill = sum(times[:-1])
        choosing = f"{row.choice_ms:.1f} ({row.choice_ms / prefill:.1%})"
        lines.append((*_named(row), *shares, choosing))
    return lines


def _apart(good: pd.DataFrame) -> list[tuple[str, ...]]:
    """Prefill and decoding step, of host and device; and images per second from end to end."""
    answers = [name for name in good.columns if name.startswith("images_per_second_")]
    ends = [f"{name.removeprefix('images_per_second_')} new" for name in answers]
    heads = ("strategy", "budget", "x by hand", "host", "device", "busy", "host", "device", *ends, "largest")
    lines = [heads]
    for row in good.itertuples():
        times = (row.prefill_host_ms, row.prefill_device_ms, row.busy_ms, row.decode_host_ms, row.decode_device_ms)
        lines.append(
            (
                *_named(row),
                _spread(row, "over_hand", 1, 2),
                *(_number(time, 1) for time in times),
                *(_number(getattr(row, name), 2) for name in answers),
                _number(row.largest_batch, 0),
            )
        )
    return lines


def _named(row: Any) -> tuple[str, str]:
    """The strategy, without the settings that a preset fixes, and its budget."""
    name, budget = str(row.strategy)[:32], "" if row.strategy in (BARE, BASELINE) else budget_label(row)
    if budget.startswith("preset "):
        return name.partition("(")[0], budget.removeprefix("preset ")
    return name, budget


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _spread(row: Any, column: str, scale: float, digits: int) -> str:
    value, low, high = (getattr(row, name) * scale for name in (column, f"{column}_low", f"{column}_high"))
    return "-" if math.isnan(value) else f"{value:.{digits}f} ±{(high - low) / 2:.{digits}f}"
