"""Figures hold the numbers of the table, and their files need nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import illava_lab as il
from illava_lab.measuring.compare import AFTER_CATEGORIES, BEFORE_CATEGORIES
from illava_lab.views import plots

ROWS = [
    # strategy, keep, accuracy, low, high, prefill_flops, status
    ("none", 1.0, 0.96, 0.0, 0.0, 2e9, "ok"),
    ("random", 0.5, 0.80, -0.18, -0.13, 1.2e9, "ok"),
    ("random", 0.7, 0.90, -0.07, -0.04, 1.6e9, "ok"),
    ("illava", 0.5, 0.94, -0.03, 0.00, 1.2e9, "ok"),
    ("broken", 0.5, np.nan, np.nan, np.nan, np.nan, "RuntimeError"),
]


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        {"strategy": name, "keep": keep, "flops": np.nan, "accuracy": accuracy, "difference": accuracy - 0.96, "difference_low": low,
         "difference_high": high, "prefill_flops": flops, "tokens": flops / 1e7, "status": status,
         "accuracy_color": accuracy, "accuracy_word": accuracy - 0.1}
        for name, keep, accuracy, low, high, flops, status in ROWS
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=[*BEFORE_CATEGORIES, "accuracy_color", "accuracy_word", *AFTER_CATEGORIES])


@pytest.mark.parametrize("x", ["flops", "tokens"])
def test_tradeoff_shows_the_table(table: pd.DataFrame, x: str) -> None:
    figure = plots.tradeoff(table, x)
    lines = {trace.name: trace for trace in figure.data}
    assert set(lines) == {"none", "random", "illava"}  # the row that failed has no place in a picture
    assert np.allclose(lines["random"].x, [60, 80]) and np.allclose(lines["random"].y, [80, 90])
    # The ends of the bars are the ends of the paired interval, seen from the accuracy of none.
    assert np.allclose(np.subtract(lines["random"].y, lines["random"].error_y.arrayminus), [96 - 18, 96 - 7])
    assert np.allclose(np.add(lines["random"].y, lines["random"].error_y.array), [96 - 13, 96 - 4])
    assert figure.layout.shapes[0].y0 == pytest.approx(96)
    looks = {(lines[name].line.color, lines[name].marker.symbol) for name in ("random", "illava")}
    assert len({color for color, _ in looks}) == len({symbol for _, symbol in looks}) == 2


def test_many_strategies_stay_distinct(table: pd.DataFrame) -> None:
    others = [table.iloc[[1]].assign(strategy=f"s{i}") for i in range(30)]
    _, lines = plots._lines(pd.concat([table, *others]), "flops")
    assert len({(line.color, line.markers) for line in lines}) == 32


def test_categories_show_losses(table: pd.DataFrame) -> None:
    heat = plots.categories(table).data[0]
    assert list(heat.x) == ["all", "color", "word"]
    assert list(heat.y) == ["none", "random keep 0.5", "random keep 0.7", "illava keep 0.5"]
    assert np.allclose(heat.z[0], 0) and np.allclose(heat.z[1], -16)
    assert list(heat.text[1]) == ["80", "80", "70"]


def test_files_are_pictures_and_pages_on_their_own(table: pd.DataFrame, tmp_path: Path) -> None:
    with Image.open(plots.tradeoff_png(table, tmp_path / "a.png")) as picture:
        assert picture.format == "PNG" and picture.width >= 1000
        assert len(picture.convert("RGB").getcolors(10**6)) > 50
    page = plots.save_html(plots.tradeoff(table), tmp_path / "a.html").read_text(encoding="utf-8")
    assert len(page) > 1_000_000  # plotly itself is inside
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)


def test_what_cannot_be_drawn_is_said(table: pd.DataFrame) -> None:
    with pytest.raises(il.LabError, match="x must be one of flops, tokens, time"):
        plots.tradeoff(table, "speed")
    with pytest.raises(il.LabError, match="'prefill_ratio', which this table leaves empty"):
        plots.tradeoff(table, "time")
    with pytest.raises(il.LabError, match='no row of strategy "none"'):
        plots.categories(table[table["strategy"] != "none"])


def test_layers_draws_each_measure_where_it_was_taken() -> None:
    table = pd.DataFrame(
        {"stage": ["encoder"] * 3 + ["llm"] * 2, "layer": [0, 1, 2, 0, 1], "half": [9, 8, None, 7, None]}
    )
    figure = plots.layers({"photo": table, "scene": table.assign(half=1)}, "half", "tokens")
    encoder, llm = figure.axes
    assert [line.get_label() for line in encoder.lines] == ["photo", "scene"]
    assert encoder.lines[0].get_xydata().tolist() == [[0, 9], [1, 8]] and llm.lines[0].get_xydata().tolist() == [[0, 7]]
    with pytest.raises(il.LabError, match="column must be one of half"):
        plots.layers({"photo": table}, "rank", "")
