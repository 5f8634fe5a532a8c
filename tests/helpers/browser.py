"""A person at JupyterLab: a headless Chromium that opens notebooks, runs them, presses keys and clicks into plots."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from helpers.lab_server import Server, serving
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

MINUTE = 60_000  # playwright counts milliseconds
WIDTH, HEIGHT = 1280, 1000
expect.set_options(timeout=MINUTE)

# Document, session and kernel. JupyterLab's own indicator says "idle" while there is no kernel yet.
READY = """() => { const open = window.jupyterapp?.shell?.currentWidget, session = open?.sessionContext,
                         kernel = session?.session?.kernel;
  return !!(open?.content?.model && open.context?.isReady && session.isReady
            && kernel?.status === 'idle' && kernel.connectionStatus === 'connected') }"""
# A command's own promise has no time-out, so its end is written down for `wait_for_function`. A dialog would wait for
# ever.
COMMAND = """name => { window.ended = null;
  window.jupyterapp.commands.execute(name).then(() => window.ended = 'well', error => window.ended = String(error)) }"""
ENDED = "() => window.ended || (document.querySelector('.jp-Dialog') && 'a dialog opened')"
CODE = """() => Array.from(window.jupyterapp.shell.currentWidget.content.model.cells)
  .filter(cell => cell.type === 'code').map(cell => cell.toJSON())"""
PLACE = """(plot, [panel, x, y]) => { const box = plot.getBoundingClientRect(), number = panel ? panel + 1 : '',
    across = plot._fullLayout['xaxis' + number], down = plot._fullLayout['yaxis' + number];
  return [box.x + across._offset + across.d2p(x), box.y + down._offset + down.d2p(y)] }"""
MARKER = """(plot, [name, number]) => { const line = plot._fullData.find(line => line.name === name);
  return [line.x[number], line.y[number]] }"""


def chromium() -> str | None:
    """Where a Chromium is, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextmanager
def jupyterlab(folder: Path, scratch: Path) -> Iterator[Server]:
    """`illava-lab lab FOLDER`, which copies the notebooks there: a run must not change those of the clone."""
    code = "import sys; from illava_lab.course.jupyter import open_lab; sys.exit(open_lab(sys.argv[1], sys.argv[2:]))"
    command = [sys.executable, "-c", code, str(folder), "--LabApp.expose_app_in_browser=True"]
    with serving(command, cwd=scratch.parent, scratch=scratch) as server:
        yield server


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless Chromium that can reach this machine only."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=[
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
            ],
        )
        try:
            yield browser
        finally:
            browser.close()


class Reader:
    """Somebody with one page of a browser.

    Attributes:
        page: Playwright's.
        complaints: errors in the page's console, and requests that would have left this machine.
    """

    def __init__(self, browser: Browser, server: Server) -> None:
        self._server = server
        self.page: Page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
        self.page.set_default_timeout(MINUTE)
        self.complaints: list[str] = []
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on(
            "console", lambda message: message.type == "error" and self.complaints.append(f"console: {message.text}")
        )
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.on("websocket", lambda socket: self._asked(socket.url))

    def _asked(self, url: str) -> None:
        address = urlsplit(url)
        if address.scheme not in ("data", "blob", "about") and address.hostname != "127.0.0.1":
            self.complaints.append(f"request: {url}")

    # ------------------------------------------------------------------------------------------ notebooks
    def open(self, notebook: str) -> None:
        """Open a notebook, and wait until its kernel is there."""
        self.page.goto(f"{self._server.url}/lab/tree/{notebook}?reset&token={self._server.token}")
        self._ready()

    def run_all(self, minutes: float = 8) -> list[dict[str, Any]]:
        """Clear all outputs, and run all cells. Returns those of code, as a notebook stores them.

        Raises:
            AssertionError: a cell did not run, or ended with an error.
        """
        self._command("notebook:clear-all-cell-outputs")
        self._command("notebook:run-all-cells", minutes)
        self._ready()
        cells: list[dict[str, Any]] = self.page.evaluate(CODE)
        for cell in cells:
            assert cell["execution_count"], f"did not run: {cell['source']}"
            errors = [out for out in cell["outputs"] if out["output_type"] == "error"]
            assert not errors, f"{errors[0]['ename']}: {errors[0]['evalue']}"
        return cells

    def come_back(self) -> None:
        """Save, and load the page again: the kernel lives on, and the page has to ask it for the widgets."""
        self._command("docmanager:save")
        self.page.reload()
        self._ready()

    def _ready(self) -> None:
        self.page.wait_for_function(READY)

    def _command(self, name: str, minutes: float = 1) -> None:
        self.page.evaluate(COMMAND, name)
        end = self.page.wait_for_function(ENDED, timeout=minutes * MINUTE).json_value()
        assert end == "well", f"{name}: {end}"

    # ------------------------------------------------------------------------------------------ widgets
    def output(self, having: Locator) -> Locator:
        """The output of a cell that has something in it."""
        return self.page.locator(".jp-OutputArea-output", has=having)

    def press(self, control: Locator, *keys: str) -> None:
        """Focus a control, and press keys one after the other."""
        control.scroll_into_view_if_needed()
        control.focus()
        for key in keys:
            control.press(key)

    def marker(self, plot: Locator, line: str, number: int = 0) -> tuple[float, float]:
        """Where a point of a line lies, in the units of the axes."""
        return tuple(plot.evaluate(MARKER, [line, number]))

    def point(self, plot: Locator, x: float, y: float, panel: int = 0) -> str:
        """Point at a place of a plotly figure, in the units of its axes. Returns what appears there."""
        plot.scroll_into_view_if_needed()
        self.page.mouse.move(*plot.evaluate(PLACE, [panel, x, y]))
        return plot.locator(".hoverlayer .hovertext").first.text_content() or ""
