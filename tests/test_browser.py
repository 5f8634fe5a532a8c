"""The course in a real browser: chapters 00 and 02 run in JupyterLab, and their widgets answer keys and clicks."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Reader, chromium, drawn, jupyterlab, launched
from lab_server import Server
from playwright.sync_api import Browser, expect

REQUIRED = os.environ.get("ILLAVA_BROWSER") == "required"  # as in .ci/run
pytestmark = pytest.mark.skipif(
    chromium() is None and not REQUIRED, reason="the tests in a real browser are left out: there is no chromium on the PATH"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("lab")
    with jupyterlab(folder / "notebooks", folder / "scratch") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert chromium(), "ILLAVA_BROWSER=required, and there is no chromium on the PATH"
    with launched() as running:
        yield running


@pytest.fixture
def reader(browser: Browser, server: Server) -> Iterator[Reader]:
    someone = Reader(browser, server)
    yield someone
    someone.page.close()


def test_start_here(reader: Reader) -> None:
    reader.open("00_start_here.ipynb")
    reader.run_all()
    # The keep slider, by its handle and by its list.
    slider = reader.output(reader.page.locator("img.widget-image"))
    handle, position, picture = slider.locator(".noUi-handle"), slider.get_by_label("keep"), slider.locator("img.widget-image")
    assert chosen(position) == "0.5"
    before, photograph = picture.get_attribute("src"), picture.screenshot()
    reader.press(handle, "ArrowRight")
    expect(position).to_have_value("0.4")
    expect(picture).not_to_have_attribute("src", before)
    assert picture.screenshot() != photograph, "the picture changes"
    # The trade-off is a live plot.
    plot = reader.page.locator(".js-plotly-plot")
    x, y = plot.evaluate("plot => { const line = plot._fullData.find(line => line.name === 'illava'); return [line.x[0], line.y[0]] }")
    assert "illava" in reader.point(plot, x, y)
    # The page is loaded again: it shows what the kernel has.
    before = drawn(plot)
    reader.come_back()
    expect(position).to_have_value("0.4")
    expect(plot).to_be_visible()
    assert drawn(plot) == before
    assert reader.complaints == []


def test_merging_step_by_step(reader: Reader) -> None:
    reader.open("02_merging_step_by_step.ipynb")
    reader.run_all()
    explorer = reader.output(reader.page.get_by_label("strategy"))
    plot, said = explorer.locator(".js-plotly-plot"), explorer.locator(".widget-html-content").last
    strategy, step, patch, handle = (*map(explorer.get_by_label, ("strategy", "step", "patch")), explorer.locator(".noUi-handle"))
    # A key on the slider, a number in the field beside it, a click on a token, another strategy: each changes the picture.
    seen = [look(plot)]
    reader.press(handle, "ArrowLeft")
    expect(step).to_have_value("4")
    expect(said).to_contain_text("encoder layer")
    seen.append(look(plot))

    assert reader.complaints == []
