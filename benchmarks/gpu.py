"""Time strategies on models of 7B to 34B with random weights, on a GPU.

    python benchmarks/gpu.py                                  all of them; the 34B one needs 80 GB
    python benchmarks/gpu.py --models llava-1.5-7b            those that fit

For each prompt of prompts.py: the bare model, "none" attached, the strategies at keep 0.5, and the papers' presets,
each timed in rounds with the bare model and with its limit (`illava_lab.measuring.bench`). Writes results/gpu/; a
stopped run goes on from results/.runs/gpu. Weights are random: speed and memory mean something, answers do not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd
from prompts import PRESETS, PROMPTS

import illava_lab as il
from illava_lab.measuring.bench import bench
from illava_lab.measuring.bench_summary import summary

RESULT = Path(__file__).parents[1] / "results" / "gpu"
RUN = RESULT.parent / ".runs" / "gpu"
STRATEGIES = ("illava", "illava-2026", "fastv", "tome", "visionzip")
KEEP = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    known = sorted({prompt.model for prompt in PROMPTS})
    parser.add_argument(
        "--models", nargs="+", choices=known, default=known, metavar="NAME", help=f"of {', '.join(known)}"
    )
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--dtype", default="bfloat16", help="default: bfloat16")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="how often each row is timed (default: 9)")
    options = parser.parse_args()
    tables, texts, lab = [], [], None
    for prompt in PROMPTS:
        if prompt.model not in options.models:
            continue
        if lab is None or lab.source != f"random:{prompt.model}":
            lab = None  # before the next one takes its memory
            lab = il.load(f"random:{prompt.model}", device=options.device, dtype=options.dtype)
        name = f"{prompt.model}-{'video' if len(prompt.shape) == 3 else 'image'}"
        table = bench(
            lab, STRATEGIES, KEEP, preset=PRESETS, image=prompt.shown(), rounds=options.rounds, out=RUN / name
        )
        tables.append(table.assign(model=prompt.model, prompt=prompt.shows))
        texts.append(f"{prompt.model}, {prompt.shows}\n\n{summary(table)}")
        RESULT.mkdir(parents=True, exist_ok=True)
        (RESULT / f"{name}.json").write_text((RUN / name / "bench.json").read_text())  # rows, GPU, versions, date, seed
    pd.concat(tables).to_csv(RESULT / "table.csv", index=False)
    (RESULT / "summary.txt").write_text("\n\n\n".join(texts) + "\n", encoding="utf-8")
    print("\n\n\n".join(texts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
