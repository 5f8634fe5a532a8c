"""What choosing and merging cost, at half of the prefill FLOPs: `python results/research/cost.py`, in three minutes.

operations.csv: floating-point operations in LLaVA-1.5-7B and in the embedded model, counted from shapes. seconds.csv:
the time of the same steps on this machine's CPU, methods in turn, in a CLIP-L/14-336 encoder (577 tokens, 24 layers)
with a decoder of 12 layers, random weights; median and range of the rounds.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import illava_lab as il
from illava_lab.measuring.machine import environment
from illava_lab.measuring.stages import stage_seconds
from illava_lab.method.registry import make_strategy
from illava_lab.models.random_models import hollow
from illava_lab.schedules.flops import prefill_flops

HERE = Path(__file__).parent
TIMED = "random:" + str(HERE.parents[1] / "benchmarks" / "clip-l-decoder-12.json")
# Of each method its budget: FastV cannot save what the encoder takes.
METHODS = {"tally": 0.5, "tome": 0.5, "illava": 0.5, "tome+fastv": 0.5, "fastv": 0.75}
TEXT, ROUNDS = 12, 5  # tokens beside the picture's; how often each is timed


def operations(name: str, model: Any) -> list[dict[str, Any]]:
    """Own GFLOP of each method, and as a share of the bare model's prefill."""
    bare, found = prefill_flops(model, text_tokens=TEXT), []
    for method, flops in METHODS.items():
        strategy = make_strategy(method)
        schedule = il.Schedule.for_budget(strategy, model, flops=flops, text_tokens=TEXT)
        whole = prefill_flops(model, strategy, schedule, text_tokens=TEXT)
        own = whole - prefill_flops(model, None, schedule, text_tokens=TEXT)
        row = {"model": name, "strategy": method, "prefill": whole / bare, "own_gflop": own / 1e9, "own": own / bare}
        found.append(row)
    return found


def seconds() -> pd.DataFrame:
    """Milliseconds that each method's maps take in one prefill, and those of the prefill."""
    lab, taken = il.load(TIMED), defaultdict(list)
    inputs = lab.inputs([il.data_dir() / "samples" / "shapes.png"], ["What is this?"])
    plans = {}
    for method, flops in METHODS.items():
        strategy = make_strategy(method)
        plans[method] = strategy, il.Schedule.for_budget(strategy, lab.model, flops=flops, text_tokens=TEXT)
    for _ in range(ROUNDS):
        for method, (strategy, schedule) in plans.items():
            with il.attach(lab.model, strategy, schedule):
                taken[method].append(stage_seconds(lab.model, inputs, rounds=1, strategy=strategy))
    rows = []
    for method, runs in taken.items():
        own = [1000 * run.pop("choice") for run in runs]
        whole = [1000 * sum(run.values()) for run in runs]
        times = {
            "own_ms": np.median(own),
            "own_ms_low": min(own),
            "own_ms_high": max(own),
            "prefill_ms": np.median(whole),
        }
        rows.append({"strategy": method, **times, "machine": environment(lab)["processor"]})
    return pd.DataFrame(rows)


def write(table: pd.DataFrame, name: str) -> None:
    table.to_csv(HERE / name, index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    write(pd.DataFrame(operations("llava-1.5-7b", hollow("llava-1.5-7b")[0]) + operations("embedded", il.load().model)),
          "operations.csv")  # fmt: skip
    write(seconds(), "seconds.csv")
