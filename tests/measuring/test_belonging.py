"""A row belongs to the code that computed it: a resumed comparison measures again what changed, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import changing

TESTS = Path(changing.__file__).parents[1]


def run(folder: Path, out: Path, seed: int) -> str:
    """Compare in a process of its own; what it says on stderr."""
    env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "helpers.changing", str(folder), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr


def lines(out: Path) -> dict[str, str]:
    """strategy -> its line in the log, which holds all its figures."""
    entries = (out / "run.jsonl").read_text().splitlines()[1:]
    assert all(json.loads(line)["row"]["status"] == "ok" for line in entries)
    return {json.loads(line)["row"]["strategy"]: line for line in entries}


@pytest.mark.slow
def test_every_kind_of_change_is_noticed_and_nothing_else(tmp_path: Path) -> None:
    folder, out, other = tmp_path / "code", tmp_path / "out", tmp_path / "other"
    for kind in changing.KINDS:
        changing.write(kind, folder, 1)
    assert run(folder, out, seed=1) == ""
    first = lines(out)
    assert len(first) == 1 + len(changing.KINDS)

    for kind in changing.KINDS:
        changing.write(kind, folder, 1, beside=True)
    assert run(folder, out, seed=2) == "", "comments, docstrings, places and unrelated code do not matter"
    assert lines(out) == first

    for kind in changing.KINDS:
        changing.write(kind, folder, -1, beside=True)
    said = run(folder, out, seed=3)
    second = lines(out)
    kept = [name for name in first if first[name] == second[name]]
    assert kept == ["none"]
    assert said.startswith("measured again, as the code changed since: t-") and said.count("\n") == 1
    assert run(folder, out, seed=4) == "" and lines(out) == second

    run(folder, other, seed=5)
    assert (other / "table.csv").read_text() == (out / "table.csv").read_text(), (
        "as if it were measured for the first time"
    )
