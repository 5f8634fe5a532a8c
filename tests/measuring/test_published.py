"""The published figures: whole, sourced, and as their sources state them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest

import illava_lab as il

FILE = Path(__file__).parents[2] / "data" / "published.csv"
# Methods with published figures that are no strategy of the lab.
NOT_IN_THE_LAB = {"gprune", "lightvlm", "sparsevila", "several"}
RANGES = {
    "%": (0, 100), "score of 100": (0, 100), "score of 5": (1, 5), "score": (50, 2800), "x": (1, 10), "s": (0.1, 400),
    "GB": (5, 80), "MB": (100, 1000), "TFLOPs": (0.1, 20), "tokens": (10, 576), "images/s": (1, 5000),
    "GPU hours": (10, 200),
}  # fmt: skip
EVIDENCE = {"README", "paper", "abstract", "project page", "issue thread", "second-hand", "computed by us"}
TEXT = ["method", "model", "setting", "task", "metric", "unit", "hardware", "source", "url_or_arxiv", "evidence"]


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return il.published()


def test_every_row_is_whole(table: pd.DataFrame) -> None:
    assert list(table) == [*TEXT[:5], "value", "qualifier", "unit", "baseline", *TEXT[6:]]
    assert len(table) == len(FILE.read_text(encoding="utf-8").splitlines()) - 1 > 400
    for column in [*TEXT, "qualifier"]:
        assert (table[column] == table[column].str.strip()).all()
    assert (table[TEXT] != "").all(axis=None)
    assert table["value"].dtype == table["baseline"].dtype == float and table["value"].notna().all()
    assert set(table["evidence"]) <= EVIDENCE
    assert set(table["qualifier"]) <= {"", "about", "up to", "at least", "below", "from", "to"}
    assert table["url_or_arxiv"].map(lambda text: bool(re.fullmatch(r"\d{4}\.\d{5}|https://\S+", text))).all()


def test_numbers_are_plausible(table: pd.DataFrame) -> None:
    for unit, rows in table.groupby("unit"):
        low, high = RANGES[unit]
        assert rows["value"].between(low, high).all(), unit
        assert rows["baseline"].dropna().between(low, high).all(), unit
    # Reduction costs accuracy: one figure says otherwise, and a column mixed up would add more.
    scores = table[table["metric"].isin(["score", "top-1 accuracy"]) & table["baseline"].notna()]
    gains = scores[scores["value"] > 1.015 * scores["baseline"]]
    assert gains["task"].tolist() == ["MIA-Bench"]


def test_no_figure_is_there_twice(table: pd.DataFrame) -> None:
    assert not table.duplicated([c for c in table if c not in ("value", "baseline")]).any()


def test_baselines_are_the_rows_of_the_unreduced_model(table: pd.DataFrame) -> None:
    same = ["model", "task", "metric", "unit", "source", "url_or_arxiv"]
    bare = table[table["method"] == "none"].groupby(same)["value"].agg(set).to_dict()
    assert table.loc[table["method"] == "none", "baseline"].isna().all()
    for row in table[table["baseline"].notna() & (table["unit"] != "tokens")].to_dict("records"):
        assert row["baseline"] in bare[tuple(row[column] for column in same)], row


def test_methods_are_those_of_the_lab(table: pd.DataFrame) -> None:
    known = {name for name, cls in il.strategies().items() if cls.__module__.startswith("illava_lab.strategies.")}
    assert set(table["method"]) <= known | NOT_IN_THE_LAB
    assert {"none", "illava", "illava-2026", "fastv", "tome", "visionzip", "prumerge+", "dart"} <= set(table["method"])


@pytest.mark.parametrize(
    ("method", "model", "task", "metric", "part_of_setting", "value", "baseline"),
    [
        ("illava", "LLaVA-OneVision 7B", "AI2D test", "score", "image tasks", 78.6, 81.4),
        ("illava", "LLaVA-OneVision 7B", "MME-P", "score", "image tasks", 1566, 1580),
        ("illava", "Qwen2-VL 7B", "VideoMME with subtitles", "score", "video tasks", 68.5, 68.8),
        ("illava", "LLaVA-NeXT 34B", "SeedBench", "memory reduction", "most reduced", 1.9, None),
        ("tome", "ViT-L/16 (MAE)", "ImageNet-1k", "top-1 accuracy", "trained", 85.09, 85.66),
        ("tome", "ViT-H/14@518 (SWAG)", "ImageNet-1k", "throughput", "r=40", 9.8, 4.7),
        ("fastv", "LLaVA-1.5 13B", "A-OKVQA", "first-token latency", "R=75 %", 0.124, 0.203),
        ("fastv", "LLaVA-1.5 7B", "GQA", "score", "K=3, R=50 %", 60.4, 62.0),
        ("pyramiddrop", "LLaVA-1.5 7B", "general", "FLOPs", "5 stages", 1.38, 3.82),
        ("sparsevlm", "LLaVA-1.5 7B", "general", "visual tokens per layer", "64 of v1; counted as processed", 82.3, 576),
        ("downsample", "Qwen2-VL 7B", "ChartQA", "score", "88.89 %", 24.8, 81.6),
        ("visionzip", "Qwen2-VL 7B", "ChartQA", "score", "88.89 %", 48.4, 81.6),
        ("prumerge+", "Qwen2-VL 7B", "mean of 8 benchmarks", "score retained", "99 %", 37.4, 100),
        ("dart", "Qwen2-VL 7B", "difficult questions (wrong when downsampled), mean", "score", "96 %", 31.9, None),
        ("divprune", "LLaVA-1.6 7B", "video", "FLOPs", "cost script", 0.937, 6.539),
        ("none", "Qwen2-VL 7B", "MME", "score", "unreduced", 2306, None),
    ],
)  # fmt: skip
def test_figures_are_the_published_ones(method, model, task, metric, part_of_setting, value, baseline) -> None:
    rows = il.published(method, metric=metric, model=model)
    (row,) = rows[(rows["task"] == task) & rows["setting"].str.contains(part_of_setting, regex=False)].to_dict(
        "records"
    )
    assert row["value"] == value
    assert math.isnan(row["baseline"]) if baseline is None else row["baseline"] == baseline


def test_fastv_of_vtc_bench_is_named_as_the_variant_it_is(table: pd.DataFrame) -> None:
    rows = table[table["source"].str.startswith("Are We Using the Right Benchmark")]
    variant = rows["setting"].str.contains("column-mean")
    assert (variant == (rows["method"] == "fastv")).all() and variant.sum() == 18 + 3 + 10 + 1


def test_a_choice_is_a_part_of_the_whole(table: pd.DataFrame) -> None:
    tome = il.published("tome", metric="throughput")
    assert set(tome["method"]) == {"tome"} and set(tome["metric"]) == {"throughput"} and len(tome) == 12
    assert sum(len(il.published(method)) for method in table["method"].unique()) == len(table)
    assert il.published("tome", model="Qwen2-VL 7B").empty


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"method": "ilava"}, "no method 'ilava'; there are: .*dart, .*illava, illava-2026"),
        ({"metric": "accuracy"}, "no metric 'accuracy'; there are: .*FLOPs ratio.*score"),
        ({"model": "LLaVA 7B"}, "no model 'LLaVA 7B'; there are: .*LLaVA-1.5 7B"),
        ({"method": ""}, "no method ''"),
    ],
)
def test_what_is_not_there_is_named(choice: dict[str, str], message: str) -> None:
    with pytest.raises(il.LabError, match=message):
        il.published(**choice)
