"""The page on speed says what the committed tables say."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

CLONE = Path(__file__).resolve().parents[2]
FOLDER = CLONE / "results" / "gpu"
TABLES = sorted(FOLDER.rglob("*.csv"))


@pytest.fixture
def make_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(CLONE / "results"))
    monkeypatch.delitem(sys.modules, "make_gpu", raising=False)
    import make_gpu

    return make_gpu


def test_the_summary_is_made_from_the_tables(make_gpu) -> None:
    stored = (FOLDER / "summary.txt").read_text(encoding="utf-8")
    assert stored == make_gpu.summary(FOLDER), "run: python results/make_gpu.py"
    assert all(stored.count(f"{title}: ") >= 1 for title in make_gpu.TITLES.values())


def test_the_installed_table_is_made_from_the_same(make_gpu) -> None:
    stored = pd.read_csv(CLONE / "data" / "gpu.csv", keep_default_na=True)
    made = make_gpu.joined(FOLDER)
    assert set(made["case"]) == set(make_gpu.TITLES.values()) and made["graphs"].any() and not made["graphs"].all()
    pd.testing.assert_frame_equal(stored.fillna({"budget": ""}), made, check_dtype=False)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_table_is_what_its_json_says(path: Path) -> None:
    table, stored = pd.read_csv(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert {"device", "processor", "torch", "transformers", "date", "dtype", "rounds", "seed"} <= stored["about"].keys()
    rows = pd.DataFrame(stored["rows"])
    assert len(table) == len(rows)
    for column in set(table) & set(rows) - {"schedule"}:
        pd.testing.assert_series_equal(table[column], rows[column], check_dtype=False, rtol=1e-12)


def test_the_prose_quotes_nothing_that_was_not_measured() -> None:
    page = (CLONE / "docs" / "speed.md").read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|`[^`]*`|LLaVA-1\.5", "", page, flags=re.DOTALL)
    measured = "\n".join(path.read_text(encoding="utf-8") for path in sorted(FOLDER.rglob("*.txt")))
    figures = set(re.findall(r"\d+\.\d+", prose))
    assert len(figures) > 8 and figures <= set(re.findall(r"\d+\.\d+", measured))


def test_gpu_py_can_repeat_every_row(make_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(CLONE / "benchmarks"))
    from gpu_rows import KEEP, ROWS

    assert {rows.name for rows in ROWS} == set(make_gpu.TITLES)
    for rows in ROWS:
        before = pd.read_csv(FOLDER / "before" / f"{rows.name}.csv")
        assert set(before["batch"]) == {rows.batch}
        assert before["preset"].dropna().tolist() == list(rows.presets)
        kept = before[before["keep"].notna() & ~before["strategy"].isin(["bare", "none"])]
        assert kept["strategy"].tolist() == list(rows.strategies) and set(kept["keep"]) <= {KEEP}
