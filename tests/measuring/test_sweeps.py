"""Sweeps that are killed with SIGKILL at random moments end with the table of an uninterrupted run.

Five kills for each kind; ILLAVA_KILLS=100 makes it a hundred.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import sweep_child

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("ILLAVA_KILLS", "5"))
TIMES = r".*_ms(_low|_high)?$|.*_ratio(_low|_high)?$|efficiency.*|over_hand.*|images_per_second"


def start(kind: str, out: Path) -> multiprocessing.Process:
    server = multiprocessing.get_context("forkserver")  # imports torch and the lab once, not for every kill
    server.set_forkserver_preload(["illava_lab.measuring.bench"])
    process = server.Process(target=sweep_child.run, args=(kind, out))
    process.start()
    return process


def complete(out: Path) -> list[str]:
    """The lines of finished rows, but for those that failed, which are tried again."""
    log = out / "run.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return [line for line in lines[1:] if json.loads(line)["row"]["status"] == "ok"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("kind", ["compare", "bench"])
def test_killed_sweeps_end_with_the_same_table(kind: str, tmp_path: Path) -> None:
    draw, whole = random.Random(kind), tmp_path / "whole"
    start("nothing", whole).join()  # the first one waits for the imports
    began = time.monotonic()
    process = start(kind, whole)
    process.join()
    assert process.exitcode == 0
    seconds = time.monotonic() - began
    expected, size = (whole / "table.csv").read_text(), len(complete(whole))
    kills, folder = 0, 0
    while kills < KILLS or process.exitcode != 0:
        out = tmp_path / f"killed{folder}"
        before = complete(out)
        process = start(kind, out)
        process.join(draw.uniform(0, seconds) if kills < KILLS else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        after = complete(out)
        # A measured row keeps its line to the last digit, and its place: nothing was lost, nothing done twice.
        assert after[: len(before)] == before
        if process.exitcode == 0:
            assert len(after) == len({json.loads(line)["label"] for line in after}) == size
            assert without_times(out / "table.csv") == without_times(whole / "table.csv")
            if kind == "compare":
                assert (out / "table.csv").read_text() == expected
            folder += 1
    assert folder > 0


def without_times(path: Path) -> str:
    table = pd.read_csv(path, dtype=str)
    return table[[name for name in table if not pd.Series([name]).str.match(TIMES)[0]]].to_csv()
