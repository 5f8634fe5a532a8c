"""The same table from one process and from two."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import illava_lab as il

pytestmark = [pytest.mark.slow, pytest.mark.network]

WORDS = ["compare", "--strategies", "random,illava", "--keep", "0.5", "--limit", "20", "--batch-size", "4"]


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
def test_two_processes_give_the_table_of_one(tmp_path: Path) -> None:
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    launch += " --dynamo_backend no --main_process_port 0 -m illava_lab"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", *launch.split(), *WORDS, "--out", "two"],
        cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model 'embedded', task 'test'") == 1  # only the first prints

    one = il.compare(il.load(), ["random", "illava"], [0.5], limit=20, batch_size=4, timing=False,
                     out=tmp_path / "one", progress=False)  # fmt: skip
    two = pd.read_csv(tmp_path / "two" / "table.csv")
    times = [name for name in one if "_ratio" in name]
    assert (two[times] > 0).all(axis=None)
    pd.testing.assert_frame_equal(two.drop(columns=times), one.drop(columns=times), check_dtype=False, check_exact=True)

    def answers(folder: str) -> dict[str, list[str]]:
        lines = (tmp_path / folder / "run.jsonl").read_text().splitlines()[1:]
        return {entry["label"]: entry["answers"] for entry in map(json.loads, lines)}

    assert answers("two") == answers("one")
