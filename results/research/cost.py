"""What choosing and merging cost, in operations: `python results/research/cost.py` writes cost.csv (half a minute).

Two shapes at half of the bare model's prefill FLOPs: LLaVA-1.5-7B, and the embedded model. Only shapes are counted, no
weights are needed. What the same steps take in time stands in results/bench, by `python benchmarks/run.py`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

import illava_lab as il
from illava_lab.method.registry import make_strategy
from illava_lab.models.random_models import hollow
from illava_lab.schedules.flops import prefill_flops

METHODS = ("tally", "tome", "illava", "tome+fastv", "fastv")
TEXT = 12  # tokens beside the picture's


def rows(name: str, model: object) -> list[dict[str, object]]:
    bare = prefill_flops(model, text_tokens=TEXT)
    found = []
    for method in METHODS:
        strategy = make_strategy(method)
        flops = 0.75 if method == "fastv" else 0.5  # it cannot save the encoder's
        try:
            schedule = il.Schedule.for_budget(strategy, model, flops=flops, text_tokens=TEXT)
        except il.LabError as error:
            print(f"{name}, {method}: {error}")
            continue
        whole = prefill_flops(model, strategy, schedule, text_tokens=TEXT)
        own = whole - prefill_flops(model, None, schedule, text_tokens=TEXT)
        found.append(
            {"model": name, "strategy": method, "prefill": whole / bare, "own_gflop": own / 1e9, "own": own / bare}
        )
    return found


if __name__ == "__main__":
    table = pd.DataFrame(rows("llava-1.5-7b", hollow("llava-1.5-7b")[0]) + rows("embedded", il.load().model))
    table.to_csv(Path(__file__).with_name("cost.csv"), index=False, float_format="%.6g")
    print(table.to_string(index=False, float_format="{:.6f}".format))
