"""benchmarks/gpu.py on a CPU: it checks, measures, stops in time, and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

CLONE = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_it_measures_what_was_asked_for_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(CLONE / "benchmarks"))
    import gpu

    def run(*words: str) -> tuple[int, str]:
        places = ["--out", str(tmp_path), "--run", str(tmp_path / "run")]
        monkeypatch.setattr(sys, "argv", ["gpu.py", *places, *words])
        return gpu.main(), capsys.readouterr().out

    quick = [
        "--rows",
        "tiny",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--rounds",
        "1",
        "--new-tokens",
        "1",
        "--answers",
        "1",
        "2",
    ]
    code, said = run(*quick, "--minutes", "0")
    assert code == 0 and "the same command again goes on" in said and not list(tmp_path.glob("*.csv"))

    code, said = run(*quick)
    assert code == 0
    assert said.count("pass") == 7 and "FAIL" not in said  # identity, and three of two strategies
    table = pd.read_csv(tmp_path / "tiny.csv")
    assert table["strategy"].tolist() == ["bare", "none", "illava", "fastv"] and set(table["status"]) == {"ok"}
    assert json.loads((tmp_path / "tiny.json").read_text())["about"]["rounds"] == 1

    code, said = run(*quick, "--no-check")
    assert code == 0 and "pass" not in said
    assert pd.read_csv(tmp_path / "tiny.csv").equals(table)  # not measured again


def test_unknown_rows_are_named(tmp_path: Path) -> None:
    command = [sys.executable, str(CLONE / "benchmarks" / "gpu.py"), "--out", str(tmp_path), "--rows", "llava-7b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and "no rows match llava-7b; there are llava-1.5-7b-b1," in done.stdout
