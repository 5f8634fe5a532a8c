"""A small share of `make fuzz`, with fixed seeds: what fails is printed with the seed that tries it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SEED = 20_000
# What takes long is tried less often. Kinds share a process, as its start takes longer than many cases.
CASES = {("pictures", "films", "arguments", "interrupts"): 100, ("folders", "runlogs", "questions"): 40}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("kinds", CASES, ids=" ".join)
def test_nothing_raw_no_hang_no_code_no_change(kinds: tuple[str, ...]) -> None:
    words = [word for kind in kinds for word in ("--kind", kind)]
    words += ["--seed", str(SEED), "--cases", str(CASES[kinds]), "--minutes", "9"]
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "fuzz.py"), *words]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-2000:]}"
    assert f"{len(kinds) * CASES[kinds]} cases from seed {SEED} " in done.stdout
