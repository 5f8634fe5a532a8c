"""Names, questions and answers are shown as they are, whatever markup they look like."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.browser import chromium, launched
from helpers.labs import noise
from matplotlib.figure import Figure
from matplotlib.text import Text
from playwright.sync_api import Browser

import illava_lab as il
from illava_lab.measuring.compare import AFTER_CATEGORIES, BEFORE_CATEGORIES
from illava_lab.views import pictures, plots
from illava_lab.widgets import front, keep_slider
from illava_lab.widgets.keep_slider import KeepSlider
from illava_lab.widgets.merge_explorer import MergeExplorer
from illava_lab.widgets.redundancy_explorer import RedundancyExplorer
from illava_lab.widgets.tradeoff_explorer import TradeoffExplorer, lost_picture

EVIL = "<b>a</b> & <script>alert(1)</script> %{x} &lt; $x^2$ \\$"
NAMES = [EVIL, "_<i>below</i>", "<a href='javascript:alert(1)'>c</a>", "a<br>b", "$\\frac$"]


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture
def answering(lab: il.Lab, monkeypatch: pytest.MonkeyPatch) -> il.Lab:
    """A lab whose answers are markup."""
    plain = il.Lab.ask
    monkeypatch.setattr(il.Lab, "ask", lambda *args, **kwargs: dataclasses.replace(plain(*args, **kwargs), text=EVIL))
    return lab


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rows = [
        {"strategy": name, "keep": keep, "flops": np.nan, "accuracy": 0.9, "difference": -0.1, "difference_low": -0.2,
         "difference_high": 0.0, "prefill_flops": keep * 1e9, "tokens": keep * 100, "status": "ok",
         f"accuracy_{EVIL}": 0.8, "accuracy_b<sub>x</sub>": 0.7}
        for name in ("none", *NAMES) for keep in ([1.0] if name == "none" else [0.5, 0.7])
    ]  # fmt: skip
    columns = [*BEFORE_CATEGORIES, f"accuracy_{EVIL}", "accuracy_b<sub>x</sub>", *AFTER_CATEGORIES]
    return pd.DataFrame(rows, columns=columns)


def written(figure: Figure) -> list[str]:
    """What matplotlib draws, in words; it fails at mathematics that are none."""
    figure.draw_without_rendering()
    out = []
    for text in figure.findobj(Text):
        words, mathematics = text._preprocess_math(text.get_text())
        assert not mathematics, words
        out.append(words)
    return out


# ---------------------------------------------------------------------------------------------- widgets
@pytest.mark.filterwarnings("ignore:this model does not know")
def test_questions_and_answers_in_widgets(answering: il.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    slider = KeepSlider(answering, noise(), EVIL, "fastv", [1.0, 0.5])
    assert {slider.widget.catalog["question"], *(one["answer"] for one in slider.widget.catalog["positions"])} == {EVIL}
    merge = MergeExplorer(answering, noise(), EVIL, {EVIL: "fastv", "<i>": "tome"})
    catalog = merge.widget.catalog  # words as they are: the page writes them as text
    assert {catalog["question"], *(one["answer"] for one in catalog["strategies"])} == {EVIL}
    assert [one["label"] for one in catalog["strategies"]] == [EVIL, "<i>"]
    redundancy = RedundancyExplorer(answering, {EVIL: noise()}, EVIL)
    assert [one["name"] for one in redundancy.widget.catalog["images"]] == [EVIL]
    told: list[str] = []
    monkeypatch.setattr(keep_slider, "show_widget", lambda box, png, alt: told.append(alt))
    slider.show(0.5)
    assert told == [f"{EVIL} -> {EVIL}"], "a description is text, and no markup"


def test_names_and_answers_in_the_trade_off_explorer(lab: il.Lab, tmp_path: Path) -> None:
    task = il.load_task("test").limited(8)
    samples = task.samples.assign(question=EVIL, category=EVIL)
    task = dataclasses.replace(task, samples=samples)
    row = {"accuracy": 1.0, "prefill_flops": 1e9, "keep": 1.0, "flops": float("nan"), "status": "ok", "difference": 0.0,
           "difference_low": 0.0, "difference_high": 0.0}  # fmt: skip
    right, wrong = task.samples["answer"].tolist(), [EVIL] * len(task)
    entries: list[dict[str, Any]] = [{"row": {"strategy": "none", **row}, "answers": right}]
    entries += [{"row": {"strategy": name, **row, "keep": 0.5}, "answers": wrong} for name in NAMES]
    lines = [{"settings": {"questions": task.digest()}}, *entries]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    explorer = TradeoffExplorer(tmp_path, task)
    explorer.set(point=f"{EVIL} at keep 0.5")
    catalog = explorer.widget.catalog  # words as they are: the page writes them as text
    assert [one["label"] for one in catalog["methods"]] == NAMES and catalog["categories"][0]["name"] == EVIL
    assert catalog["points"][0]["lost"][0][0][1] == catalog["questions"][0]["question"] == EVIL
    assert all("innerHTML" not in front.script(figure) for figure in front.PARTS)
    drawn = [" ".join(words.split()) for words in written(lost_picture(task, explorer.lost, EVIL))]
    assert any(f"said: {' '.join(EVIL.split())}" in words for words in drawn)
    assert any(words.startswith(EVIL) for words in drawn)


# ---------------------------------------------------------------------------------------------- plots
def test_matplotlib_sets_no_mathematics(table: pd.DataFrame, answering: il.Lab) -> None:
    said = written(plots.tradeoff_picture(table))
    assert {"none", *NAMES} <= set(said)
    profile = pd.DataFrame({"stage": ["encoder", "llm"], "layer": [0, 0], "rank": [1.0, 2.0]})
    assert set(NAMES) <= set(written(plots.layers(dict.fromkeys(NAMES, profile), "rank", EVIL)))
    assert EVIL in written(plots.layers({"a": profile}, "rank", EVIL))
    assert {EVIL, *NAMES} <= set(written(pictures.side_by_side([(name, noise()) for name in NAMES], EVIL)))


def test_every_text_of_a_plot_is_escaped(table: pd.DataFrame) -> None:
    figure = plots.tradeoff(table)
    assert {html.unescape(trace.name) for trace in figure.data} == {"none", *NAMES}
    heat = plots.categories(table).data[0]
    assert [html.unescape(name) for name in heat.x] == ["all", EVIL, "b<sub>x</sub>"]
    for text in (*(trace.name for trace in figure.data), *heat.x, *heat.y):
        assert "<" not in text
    for trace in figure.data:
        assert trace.hovertemplate is None or EVIL not in trace.hovertemplate


def test_a_file_ends_where_it_should(table: pd.DataFrame, tmp_path: Path) -> None:
    page = plots.save_html(plots.tradeoff(table), tmp_path / "a.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page and EVIL not in re.sub(r"\\u003[ce]", "", page)


# ---------------------------------------------------------------------------------------------- in a browser
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not chromium() and os.environ.get("ILLAVA_BROWSER") != "required":
        pytest.skip("there is no chromium on the PATH")
    with launched() as running:
        yield running


@pytest.mark.browser
def test_a_browser_shows_names_as_they_are(browser: Browser, table: pd.DataFrame, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    alarms: list[str] = []
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    plain = [" ".join(name.split()) for name in NAMES]

    def texts(where: str) -> list[str]:
        page.wait_for_selector(where)
        return [" ".join((text or "").split()) for text in page.locator(where).all_text_contents()]

    page.goto(plots.save_html(plots.tradeoff(table), tmp_path / "a.html").as_uri())
    assert set(plain) <= set(texts(".legendtext"))
    assert page.locator(".legendtext a, .legendtext tspan").count() == 0
    x, y = page.evaluate(
        """() => { const plot = document.querySelector('.js-plotly-plot'), box = plot.getBoundingClientRect(),
            across = plot._fullLayout.xaxis, down = plot._fullLayout.yaxis, line = plot._fullData[0];
          return [box.x + across._offset + across.d2p(line.x[0]), box.y + down._offset + down.d2p(line.y[0])] }"""
    )
    page.mouse.move(x, y)
    assert any(name in text for text in texts(".hoverlayer .name") for name in ["<b>a</b>", *plain])
    page.goto(plots.save_html(plots.categories(table), tmp_path / "b.html").as_uri())
    assert set(texts(".xtick text")) >= {" ".join(EVIL.split()), "b<sub>x</sub>"}
    assert all(any(text.startswith(name) for text in texts(".ytick text")) for name in plain)
    assert not alarms
    page.close()
