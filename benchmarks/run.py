"""Is reduction as fast as it can be, and as fast as it was? Outside the test suite, because it needs quiet cores.

    OMP_NUM_THREADS=2 python benchmarks/run.py             measure, and hold against the targets and the last result
    OMP_NUM_THREADS=2 python benchmarks/run.py --commit    also keep the result, for the next run to be held against

The model is that of clip-l-decoder-12.json with random weights: a CLIP-L/14-336 encoder (577 tokens, 24 layers of width
1024) and a decoder of 12 layers of width 2048. A stopped run goes on from results/.runs/benchmark. Exit status 1
where a target is missed, or a strategy is slower than in the last result by more than the spread of both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import pandas as pd

import illava_lab as il
from illava_lab.measuring.bench import bench
from illava_lab.measuring.bench_summary import summary

HERE = Path(__file__).parent
MODEL = HERE / "clip-l-decoder-12.json"
RESULT = HERE.parent / "results" / "bench"
RUN = HERE.parent / "results" / ".runs" / "benchmark"
STRATEGIES = ("tally", "illava", "tome", "fastv", "visionzip")
KEEP = 0.5
# The prefill time of the limit, over that of the strategy. For "none", the limit is the bare model.
TARGETS = {"none": 0.995} | dict.fromkeys(STRATEGIES, 0.97)


def verdicts(table: pd.DataFrame, last: pd.DataFrame | None) -> tuple[str, bool]:
    """One line for each strategy, and whether all is well."""
    lines, fine = [f"{'':<10}  {'efficiency':>24}  {'target':>6}  {'last result':>24}"], True
    for name, target in TARGETS.items():
        row = table.set_index("strategy").loc[name]
        if row["status"] != "ok":
            lines.append(f"{name:<10}  {row['status']}")
            fine = False
            continue
        words, before = [], None if last is None else last.set_index("strategy")["efficiency_low"].get(name)
        if row["efficiency"] < target:
            words.append(f"missed by {target - row['efficiency']:.1%}")
        if before is not None and row["efficiency_high"] < before:
            words.append("slower than the last result")
        shown = "-" if before is None else _spread(last.set_index("strategy").loc[name])
        lines.append(f"{name:<10}  {_spread(row):>24}  {target:>6.1%}  {shown:>24}  {', '.join(words) or 'ok'}")
        fine = fine and not words
    return "\n".join(lines), fine


def _spread(row: pd.Series) -> str:
    return f"{row['efficiency']:.1%} ({row['efficiency_low']:.1%}-{row['efficiency_high']:.1%})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="how often each row is timed (default: 9)")
    parser.add_argument("--commit", action="store_true", help=f"keep the result in {RESULT.relative_to(HERE.parent)}/")
    options = parser.parse_args()
    last = pd.read_csv(RESULT / "table.csv") if (RESULT / "table.csv").exists() else None

    lab = il.load(f"random:{MODEL}")
    table = bench(lab, STRATEGIES, KEEP, new_tokens=2, rounds=options.rounds, out=RUN)
    text, fine = verdicts(table, last)
    print(summary(table), text, sep="\n\n")
    if options.commit:
        RESULT.mkdir(parents=True, exist_ok=True)
        stored = json.loads((RUN / "bench.json").read_text())
        stored["about"]["model"] = f"random:benchmarks/{MODEL.name}"
        (RESULT / "bench.json").write_text(json.dumps(stored, indent=1) + "\n")
        (RESULT / "summary.txt").write_text(f"{summary(table)}\n\n{text}\n")
        table.to_csv(RESULT / "table.csv", index=False)
    shutil.rmtree(RUN)  # only a stopped run is to go on: what the lab's own code costs is measured anew
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
