"""The mean over tasks: what its interval says, and that the stored one is of the stored tables."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from illava_lab.measuring.statistics import paired_difference

FOLDER = Path(__file__).parents[2] / "results" / "equal_flops"
sys.path.insert(0, str(FOLDER.parent))
import make_means  # noqa: E402

KEYS = ("tally", 0.5), ("tome", 0.5)


def _task(seed: int, images: int = 40, questions: int = 3, gain: float = 0.1) -> make_means.Answers:
    rng = np.random.default_rng(seed)
    base = np.repeat(rng.random(images) < 0.7, questions)
    better = base | (rng.random(images * questions) < gain)
    return {KEYS[0]: better, KEYS[1]: base}, np.repeat([f"image {k}" for k in range(images)], questions)


def test_of_one_task_it_is_the_paired_difference() -> None:
    right, images = _task(0)
    ours = make_means.mean_difference([(right, images)], *KEYS)
    reference = paired_difference(right[KEYS[0]], right[KEYS[1]], list(images))
    assert ours.value == reference.value
    assert ours.low == pytest.approx(reference.low, abs=0.01)
    assert ours.high == pytest.approx(reference.high, abs=0.01)


def test_each_task_counts_alike_and_many_narrow_the_interval() -> None:
    small, large = _task(1, images=10), _task(2, images=100)
    both = make_means.mean_difference([small, large], *KEYS)
    each = [make_means.mean_difference([one], *KEYS) for one in (small, large)]
    assert both.value == pytest.approx(np.mean([one.value for one in each]))
    spread = [one.high - one.low for one in each]
    expected = np.hypot(*spread) / 2  # of two independent ones
    assert both.high - both.low == pytest.approx(expected, rel=0.15)


def test_a_method_is_compared_where_it_reaches_the_budget() -> None:
    reached, other = _task(3), _task(4)
    missed = ({KEYS[0]: other[0][KEYS[0]]}, other[1])
    table = make_means.means({"test": reached, "video": missed}).set_index("strategy")
    assert table.at["tome", "tasks"] == 1 and table.at["tally", "tasks"] == 2
    assert table.at["tome", "tally"] == reached[0][KEYS[0]].mean()
    assert table.at["tome", "lead"] == pytest.approx(table.at["tome", "tally"] - table.at["tome", "mean"])


def test_the_stored_means_are_of_the_stored_tables() -> None:
    tables = {path.parent.name: pd.read_csv(path) for path in FOLDER.glob("*/table.csv")}
    rows = pd.concat([table[table["status"].eq("ok") & table["flops"].notna()] for table in tables.values()])
    expected = rows.groupby(["flops", "strategy"])["accuracy"].agg(["mean", "count"])
    stored = pd.read_csv(FOLDER / "means.csv").set_index(["flops", "strategy"])
    assert set(stored.index) == set(expected.index), "run: make results RUN=means"
    for key, row in stored.iterrows():
        assert row["tasks"] == expected.at[key, "count"]
        assert row["mean"] == pytest.approx(expected.at[key, "mean"], abs=1e-6)
