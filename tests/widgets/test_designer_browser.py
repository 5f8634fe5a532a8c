"""The schedule designer in a real browser: its rule is Python's, and it works without a kernel and with one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from helpers.browser import Reader, chromium, jupyterlab, launched
from playwright.sync_api import Browser, Locator, Page, expect
from transformers import AutoConfig, AutoModelForImageTextToText

import illava_lab as il
from illava_lab.widgets import ScheduleDesigner, front

if not chromium() and os.environ.get("ILLAVA_BROWSER") != "required":  # as .ci/run says
    pytest.skip("the tests in a real browser are left out: there is no chromium on the PATH", allow_module_level=True)
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

FILE = Path(__file__).resolve().parents[2] / "docs" / "explorers" / "designer.json"
STORED = json.loads(FILE.read_text(encoding="utf-8"))
CATALOG, START, ANSWERS = STORED["catalog"], STORED["start"], STORED["answers"]
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>designer</title><style>body { margin: 12px; background: #fff } body.dark { background: #111 }</style>
<link rel="stylesheet" href="designer.css"><div id="here"></div><script src="designer.js"></script>
<script>window.stored = STORED; illava.designer.mount(document.getElementById("here"), stored)</script></html>"""
# Forecasts of several schedules by the page's own rule, and what it then says.
ALL = """([stored, wanted]) => { const made = illava.designer.mount(document.createElement("div"), stored);
  return wanted.map(values => { made.go(values);
    return { ...made.plan, said: made.said.textContent, code: made.code.textContent } }) }"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert chromium(), "ILLAVA_BROWSER=required, and there is no chromium on the PATH"
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "designer.css").write_text(front.style("designer"), encoding="utf-8")
    (folder / "designer.js").write_text(front.page_script("designer"), encoding="utf-8")
    return folder


def opened(browser: Browser, folder: Path, stored: dict[str, Any]) -> tuple[Page, list[str]]:
    """The page as a file, and what it complains of: errors, and requests for anything but its own files."""
    page, complaints = browser.new_page(viewport={"width": 900, "height": 1100}), list[str]()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("request", lambda asked: asked.url.startswith((folder.as_uri(), "data:")) or complaints.append(asked.url))
    (folder / "index.html").write_text(PAGE.replace("STORED", json.dumps(stored)), encoding="utf-8")
    page.goto((folder / "index.html").as_uri())
    return page, complaints


def sliders(page: Page) -> Locator:
    return page.get_by_role("slider")


def values(page: Page) -> list[int]:
    return [int(slider.input_value()) for slider in sliders(page).all()]


def number(stage: str, layer: int) -> int:
    """Which slider it is."""
    return CATALOG["places"].index([stage, layer])


def stored_answer(at: list[int]) -> dict[str, Any]:
    return next(one for one in ANSWERS if one["values"] == at)


def shows(page: Page, answer: dict[str, Any]) -> None:
    """The page shows a stored answer with its pictures."""
    expect(page.locator(".im-title")).to_have_text(answer["words"])
    images = page.get_by_role("img").and_(page.locator("img"))
    wanted = [CATALOG["outcome"]["seen"]["address"], *(STORED["images"][one["image"]] for one in answer["panels"])]
    assert [image.get_attribute("src") for image in images.all()] == wanted
    assert [image.get_attribute("alt") for image in images.all()][1:] == [one["title"] for one in answer["panels"]]


# --------------------------------------------------------------------------------------------- the rule
@pytest.mark.parametrize(
    ("name", "text"),
    [("embedded", 10), ("llava-1.5-7b", 64), ("qwen2.5-vl-7b", 3), ("qwen3-vl-4b", 0), ("qwen3.5-9b", 37)],
    ids=["embedded", "class token", "windows", "projectors between", "linear attention"],
)
def test_the_page_forecasts_as_python_does(name: str, text: int, browser: Browser, folder: Path) -> None:
    model = il.load().model if name == "embedded" else without_weights(name)
    seconds = {"encoder": 0.3, "projector": 0.02, "llm": 1.7}
    designer, draw = ScheduleDesigner(model, text_tokens=text, seconds=seconds), np.random.default_rng(1)
    count = len(designer.widget.shown)
    some = draw.choice([5, 25, 50, 75, 95, 100], (15, count)), draw.integers(5, 101, (15, count))
    untouched = draw.random((30, count)) < np.linspace(0, 0.95, 30)[:, None]
    wanted = np.where(untouched, 100, np.concatenate(some)).tolist()
    page, complaints = opened(browser, folder, STORED)
    found = page.evaluate(ALL, [designer.store(), wanted])
    for at, plan in zip(wanted, found, strict=True):
        designer.widget.shown = at
        exact = designer.forecast
        assert {stage: counts[:-1] for stage, counts in plan["tokens"].items()} == exact.tokens, designer.schedule
        assert plan["left"] == exact.tokens["llm"][-1]
        assert plan["flops"] == pytest.approx(exact.flops, rel=1e-9)
        assert plan["time"] == pytest.approx(exact.time, rel=1e-9)
        assert plan["said"].startswith(f"{exact}. ") and plan["code"] == f"il.{designer.schedule!r}"
    assert complaints == []
    page.close()


def without_weights(name: str) -> torch.nn.Module:
    """A published model of which there are only shapes."""
    config = json.loads((il.data_dir() / "configs" / f"{name}.json").read_text(encoding="utf-8"))["config"]
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config))


# --------------------------------------------------------------------------------------------- without a kernel
def test_mouse_keys_presets_and_reset(browser: Browser, folder: Path) -> None:
    page, complaints = opened(browser, folder, STORED)
    preset, code, said = page.get_by_role("combobox"), page.locator("code"), page.locator(".im-figure")
    assert values(page) == START and preset.locator("option:checked").inner_text() == "illava-image"
    shows(page, stored_answer(START))
    # Keys: each slider has a name, and the same keys in every browser.
    first = page.get_by_role("slider", name="image encoder layer 0: percent kept")
    first.focus()
    for key, wanted in (
        ("ArrowDown", 99), ("ArrowLeft", 98), ("PageDown", 93), ("ArrowUp", 94), ("ArrowRight", 95), ("PageUp", 100),
        ("Home", 5), ("End", 100), ("End", 100),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert int(first.input_value()) == wanted and values(page)[1:] == START[1:]
    expect(first).to_have_attribute("aria-valuetext", "100 %: 196 of 196 tokens stay")
    # A schedule that was not computed: the costs follow, and the page says what it does not know.
    page.keyboard.press("Home")
    expect(page.locator(".im-title")).to_contain_text("were not computed for this page. In a notebook")
    expect(page.locator("figure")).to_have_count(0)
    expect(code).to_contain_text("il.Schedule(encoder={0: 0.05, 2:")
    assert preset.locator("option:checked").inner_text() == "your own"
    # A preset; then the mouse, with everything at once while the button is down.
    preset.select_option("no reduction")
    assert values(page) == [100] * len(START)
    shows(page, stored_answer([100] * len(START)))
    slider = sliders(page).nth(number("llm", 2))
    box = slider.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 9)
    page.mouse.down()
    heights = []
    for share in (0.3, 0.5, 0.8):
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + share * box["height"])
        kept = int(slider.input_value())
        left = 196 - round(196 * (1 - kept / 100))
        expect(said).to_contain_text(f"{left} of 196 visual tokens enter the last LLM layer")
        heights.append(page.locator(".im-now").last.evaluate("bar => Number(bar.getAttribute('height'))"))
        assert heights[-1] == pytest.approx(100 * left / 196)
    page.mouse.up()
    assert heights == sorted(heights, reverse=True) and 10 < kept < 35
    # A stored cut of one layer, by its button.
    button = page.get_by_role("button", name="image encoder layer 7 alone: 70 %")
    expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    cut = [100] * len(START)
    cut[number("encoder", 7)] = 70
    assert values(page) == cut
    shows(page, stored_answer(cut))
    page.get_by_role("button", name="Reset").click()
    assert values(page) == START
    shows(page, stored_answer(START))
    assert complaints == []
    page.close()


def test_a_layer_that_the_strategy_cannot_cut(browser: Browser, folder: Path) -> None:
    designer = ScheduleDesigner(
        il.load(), il.data_dir() / "samples" / "shapes.png", "What color is the circle?", "fastv"
    )
    page, complaints = opened(browser, folder, designer.store(["no reduction"]))
    page.get_by_role("slider", name="image encoder layer 1:").press("PageDown")
    expect(page.locator(".im-title")).to_contain_text("fastv cannot do that: strategy 'fastv' serves llm")
    page.get_by_role("slider", name="LLM layer 1:").press("PageDown")
    page.get_by_role("slider", name="image encoder layer 1:").press("End")
    expect(page.locator(".im-title")).to_contain_text("were not computed")
    assert complaints == []
    page.close()


def test_in_the_dark_on_a_phone_and_with_many_layers(browser: Browser, folder: Path) -> None:
    deep = ScheduleDesigner(
        without_weights("glm-4.1v-9b"), text_tokens=64, seconds={"encoder": 1, "projector": 0.1, "llm": 4}
    )
    for stored in (STORED, deep.store()):
        page, complaints = opened(browser, folder, stored)
        root = page.locator(".im")
        bright = root.evaluate("root => getComputedStyle(root).backgroundColor")
        page.evaluate("document.body.classList.add('dark')")
        expect(root).to_have_attribute("data-theme", "dark")
        assert root.evaluate("root => getComputedStyle(root).backgroundColor") != bright
        for width in (900, 360):
            page.set_viewport_size({"width": width, "height": 800})
            page.wait_for_function("document.querySelector('.im-costs').getBoundingClientRect().right <= innerWidth")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
            boxes = [slider.bounding_box() for slider in sliders(page).all()]
            assert all(box and box["width"] >= 24 and box["height"] >= 90 for box in boxes), "large enough for a finger"
            corners = {(round(box["x"]), round(box["y"])) for box in boxes if box}
            assert len(corners) == len(boxes), "none lies on another"
            apart = page.evaluate("""[...document.querySelectorAll('.im-column')].every((column, i, all) => { if (!i) return true;
              const [a, b] = [all[i - 1], column].map(one => one.getBoundingClientRect());
              return b.left >= a.right - 1 || b.top >= a.bottom - 1 })""")
            assert apart, "columns stand side by side"
        assert complaints == []
        page.close()


def test_the_stored_file_is_small_and_holds_every_preset() -> None:
    assert FILE.stat().st_size < 400_000
    stored = [one["values"] for one in ANSWERS]
    assert all(preset["values"] in stored for preset in CATALOG["presets"]) and START in stored
    assert CATALOG["seconds"] is None, "no time of somebody's machine"
    designer = ScheduleDesigner(il.load().model)
    assert json.loads(json.dumps({**designer.widget.catalog, "outcome": CATALOG["outcome"]})) == CATALOG, (
        "python docs/explorer_runs.py designer makes it again"
    )


# --------------------------------------------------------------------------------------------- in a notebook
@pytest.mark.network
def test_in_a_notebook_the_model_answers(browser: Browser, tmp_path: Path) -> None:
    cells = [
        "import illava_lab as il\nfrom illava_lab.widgets import ScheduleDesigner",
        'picture = il.data_dir() / "samples" / "shapes.png"',
        'designer = ScheduleDesigner(il.load(), picture, "What color is the circle?", "fastv")\ndesigner.show()',
        "print(designer.schedule)",
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel}
    )
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "designer.ipynb")
    with jupyterlab(tmp_path / "notebooks", tmp_path / "scratch") as server:
        reader = Reader(browser, server)
        reader.open("designer.ipynb")
        reader.run_all()
        designer, said = reader.page.locator(".im-designer"), reader.page.locator(".im-designer .im-title")
        expect(said).to_contain_text("with fastv, the same as without reduction")
        # Keys move the slider, and nothing of JupyterLab's; after the last, picture and answer are those of the schedule.
        slider = designer.get_by_role("slider", name="LLM layer 2:")
        reader.press(slider, "Home", "ArrowUp")
        expect(designer.locator("code")).to_have_text("il.Schedule(encoder={}, llm={2: 0.06})")
        expect(designer.locator("figcaption").last).to_have_text("in the last LLM layer: 12 tokens")
        expect(designer.locator(".im-pale")).to_have_count(0)
        answer = il.load().ask(
            il.data_dir() / "samples" / "shapes.png", "What color is the circle?", "fastv",
            schedule=il.Schedule(llm={2: 0.06}),
        )  # fmt: skip
        expect(said).to_contain_text(f"“{answer.text}”")
        # What the strategy refuses.
        reader.press(designer.get_by_role("slider", name="image encoder layer 1:"), "PageDown")
        expect(said).to_contain_text("fastv cannot do that: strategy 'fastv' serves llm")
        expect(designer.locator("figure")).to_have_count(0)
        # A page that is loaded again shows what the kernel has.
        reader.come_back()
        expect(designer.locator("code")).to_have_text("il.Schedule(encoder={1: 0.95}, llm={2: 0.06})")
        expect(said).to_contain_text("fastv cannot do that")
        designer.get_by_role("button", name="Reset").click()
        expect(said).to_contain_text("with fastv, the same as without reduction")
        assert reader.complaints == []
        reader.page.close()
