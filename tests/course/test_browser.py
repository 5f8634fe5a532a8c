"""The course in a real browser: chapters 00 and 02 run in JupyterLab, and their widgets answer keys and clicks."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

import pytest
from helpers.browser import Reader, chromium, jupyterlab, launched
from helpers.chapters import FOLDER, IN_BROWSER, SECONDS, check_run, with_solutions
from helpers.lab_server import Server
from playwright.sync_api import Browser, Locator, expect

if not chromium() and os.environ.get("ILLAVA_BROWSER") != "required":  # as .ci/run says
    pytest.skip("the tests in a real browser are left out: there is no chromium on the PATH", allow_module_level=True)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.network,
    pytest.mark.timeout(900),  # a chapter takes a minute; several, where others use the cores
]


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


def run(reader: Reader, server: Server, chapter: str) -> None:
    """Run all of a chapter, and its solutions after it."""
    notebook = with_solutions(FOLDER / f"{chapter}.ipynb")
    server.put(f"/api/contents/{chapter}.ipynb", {"type": "notebook", "format": "json", "content": notebook})
    reader.open(f"{chapter}.ipynb")
    start = time.time()
    check_run(reader.run_all(), start, 2 * SECONDS)  # the browser is at work beside it


def test_start_here(reader: Reader, server: Server) -> None:
    run(reader, server, IN_BROWSER[0])
    # The keep slider: a key on its handle moves the number beside it, and the pictures.
    slider = reader.output(reader.page.locator(".im-keeps"))
    handle, kept, pictures = slider.get_by_role("slider"), slider.locator(".im-kept"), slider.locator(".im-panels")
    expect(kept).to_have_text("50 %")
    seen = look(pictures)
    reader.press(handle, "ArrowRight")
    expect(kept).to_have_text("60 %")
    assert look(pictures) != seen, "the pictures change"
    # A prediction tells what was measured to those who commit to one.
    guess = reader.output(reader.page.get_by_text("with half of the 196 tokens left"))
    expect(guess).to_contain_text("It is measured.")
    expect(guess).not_to_contain_text("Measured:")
    reader.press(guess.get_by_role("radio").first, "Space")
    guess.get_by_role("button", name="Commit").click()
    expect(guess).to_contain_text("Measured:")
    # The first trade-off is a live plot.
    plot = reader.page.locator(".js-plotly-plot").first
    assert "illava" in reader.point(plot, *reader.marker(plot, "illava"))
    assert reader.complaints == []


def test_merging_step_by_step(reader: Reader, server: Server) -> None:
    run(reader, server, IN_BROWSER[1])
    explorer = reader.output(reader.page.get_by_role("combobox", name="strategy"))
    panels, said = explorer.locator(".im-grids"), explorer.get_by_role("status")
    strategy, patch = explorer.get_by_role("combobox"), explorer.get_by_role("spinbutton")
    pictures = [look(panels)]

    def changed() -> bool:
        """The panels are other pictures than they were the last time."""
        pictures.append(look(panels))
        return pictures[-1] != pictures[-2]

    # A key on the slider, a click on a token, and by keyboard alone the field beside them.
    before = said.inner_text()
    reader.press(explorer.get_by_role("slider"), "Home", "ArrowRight")
    expect(said).to_contain_text("encoder layer")
    expect(explorer.locator(".im-kept")).to_have_text("1 of 5")
    assert changed() and said.inner_text() != before
    tokens = explorer.locator(".im-over").nth(2)
    side = tokens.bounding_box()["width"] / 14
    tokens.hover(position={"x": 9.5 * side, "y": 6.5 * side})
    expect(explorer.locator(".im-tip")).to_contain_text("patch 93")
    tokens.click(position={"x": 9.5 * side, "y": 6.5 * side})
    expect(said).to_contain_text("Patch 93")
    expect(patch).to_have_value("93")
    assert changed()
    reader.press(patch, "ControlOrMeta+a", "2", "0", "Enter")
    expect(said).to_contain_text("Patch 20")
    assert changed()
    reader.press(strategy, "t")  # the first that begins so
    expect(said).to_contain_text("tome")
    assert changed()
    # The page is loaded again: it shows what the kernel has.
    words = said.inner_text()
    reader.come_back()
    expect(said).to_have_text(words)
    expect(patch).to_have_value("20")
    # A quiz explains, also by keyboard.
    answers = reader.page.locator(".widget-radio").last
    reader.press(answers.get_by_role("radio").first, "Space")
    expect(answers.locator("xpath=following-sibling::*")).to_have_text(re.compile(r"(Right|No)\. .+"))
    assert reader.complaints == []


def look(widget: Locator) -> bytes:
    """A photograph of it, pointing at nothing."""
    widget.page.mouse.move(0, 0)
    expect(widget.page.locator(".im-tip:visible")).to_have_count(0)
    return widget.screenshot()
