"""What reduction saves in models of 7B to 34B, counted from shapes on any machine: no weights, no GPU, no clock.

    python benchmarks/at_size.py                some 15 minutes on one core; writes results/at_size/

Every model of `data/configs/` goes through a whole prefill in bfloat16 with its real code, but matrix products,
convolutions and fused attention return zeros of the right shape instead of being computed, and weights are never
written. What is counted: FLOPs by the closed form (`illava_lab.schedules.flops`), bytes of keys and values, and the
most bytes of tensors alive at once above weights and inputs (`illava_lab.measuring.live_bytes`). An allocator's
rounding and the work space inside kernels are not in it, and it says nothing about time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from prompts import PRESETS, PROMPTS, Prompt
from tqdm.auto import tqdm

import illava_lab as il
from illava_lab.measuring import measure
from illava_lab.measuring.bench import QUESTION
from illava_lab.measuring.rows import wanted
from illava_lab.measuring.shapes_only import ShapesOnly
from illava_lab.models.random_models import hollow
from illava_lab.schedules.flops import prefill_flops
from illava_lab.session.lab import Lab

RESULT = Path(__file__).parents[1] / "results" / "at_size"


def rows_of(prompt: Prompt) -> list[dict[str, Any]]:
    """One row for the bare model, and one for each preset that fits."""
    model, processor = hollow(prompt.model)
    inputs = Lab(model, processor, f"random:{prompt.model}").inputs([prompt.shown()], [QUESTION])
    text, layouts = measure.text_tokens(model, inputs), measure.layouts(model, inputs)
    visual = sum(int((~layout.marker).sum()) for layout in layouts)
    rows = []
    for plan in [None, *wanted(None, None, None, PRESETS, None, default=(), seed=0).rows(model)]:
        row: dict[str, Any] = {
            "model": prompt.model,
            "prompt": prompt.shows,
            "visual_tokens": visual,
            "text_tokens": text,
        }
        row["preset"] = "bare" if plan is None else plan.budget["preset"]
        try:
            if plan is not None and isinstance(plan.schedule, Exception):
                raise plan.schedule
            configuration = None if plan is None else (plan.strategy, plan.schedule)
            with measure.attached(model, configuration):
                row["cache_bytes"], row["peak_bytes"] = measure.memory(model, inputs)
            strategy, schedule = configuration or (il.get_strategy("none")(), il.Schedule())
            row["prefill_flops"] = prefill_flops(model, strategy, schedule, text_tokens=text, layouts=layouts)
            row["status"] = "ok"
        except il.LabError as error:
            row["status"] = str(error)
        rows.append(row)
    return rows


def summary(table: pd.DataFrame) -> str:
    """For people: shares of the bare model's."""
    parts = []
    for (name, shows), rows in table.groupby(["model", "prompt"], sort=False):
        bare = rows[rows["preset"] == "bare"].iloc[0]
        shares = f"{'cache MB':>8}  {'x bare':>6}  {'peak MB':>8}  {'x bare':>6}"
        lines = [
            f"{name}, {shows}: {bare.visual_tokens} visual tokens and {bare.text_tokens} of text",
            f"{'preset':<16}  {'TFLOPs':>7}  {'x bare':>6}  {shares}",
        ]
        for row in rows[rows["status"] == "ok"].itertuples():
            lines.append(
                f"{row.preset:<16}  {row.prefill_flops / 1e12:>7.2f}  {row.prefill_flops / bare.prefill_flops:>6.2f}"
                f"  {row.cache_bytes / 1e6:>8.1f}  {row.cache_bytes / bare.cache_bytes:>6.2f}"
                f"  {row.peak_bytes / 1e6:>8.1f}  {row.peak_bytes / bare.peak_bytes:>6.2f}"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> int:
    rows: list[dict[str, Any]] = []
    for prompt in tqdm(PROMPTS, desc="at size"):
        with ShapesOnly():
            rows += rows_of(prompt)
    table = pd.DataFrame(rows)
    RESULT.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULT / "table.csv", index=False)
    (RESULT / "summary.txt").write_text(summary(table) + "\n", encoding="utf-8")
    about = {"command": "python benchmarks/at_size.py", "torch": torch.__version__, "dtype": "bfloat16"}
    (RESULT / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(summary(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
