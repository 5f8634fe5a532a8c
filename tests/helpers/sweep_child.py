"""Sweeps in processes of their own, for test_sweeps.py to kill."""

from __future__ import annotations

from pathlib import Path

import torch

import illava_lab as il
from illava_lab.measuring.bench import bench


class Fails(il.Scorer):
    name = "test-fails"

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        raise RuntimeError("on purpose")


def run(kind: str, out: Path) -> None:
    """One sweep of `kind`, "compare" or "bench", into `out`; nothing for any other."""
    torch.set_num_threads(1)
    if kind not in ("compare", "bench"):
        return
    lab = il.load()
    if kind == "compare":
        il.compare(lab, ["random", Fails, "fastv"], [0.7, 0.3], limit=4, timing=False, out=out, progress=False)
    else:
        bench(lab, ["random", Fails], [0.5], rounds=1, new_tokens=1, answers=[1], out=out, progress=False)
