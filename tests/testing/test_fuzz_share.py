"""A small share of `make fuzz`, with fixed seeds: what fails is printed with the seed that tries it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SEED = 20_000
CASES = {
    "pictures": 150, "films": 100, "folders": 40, "runlogs": 40, "questions": 80, "arguments": 150, "interrupts": 150,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("kind", CASES)
def test_nothing_raw_no_hang_no_code_no_change(kind: str) -> None:
    words = ["--kind", kind, "--seed", str(SEED), "--cases", str(CASES[kind]), "--minutes", "5"]
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "fuzz.py"), *words]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert f"{CASES[kind]} cases from seed {SEED} " in done.stdout
