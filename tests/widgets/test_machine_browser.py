"""The machine in a real browser: on a page with stored runs, and in a notebook with a kernel behind it."""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from helpers.browser import Reader, chromium, jupyterlab, launched
from playwright.sync_api import Browser, Locator, Page, expect

import illava_lab as il
from illava_lab.views.colors import LARGEST, place_rgb
from illava_lab.widgets import front

if not chromium() and os.environ.get("ILLAVA_BROWSER") != "required":  # as .ci/run says
    pytest.skip("the tests in a real browser are left out: there is no chromium on the PATH", allow_module_level=True)
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

RUNS = Path(__file__).resolve().parents[2] / "docs" / "machine.json"
STORED = json.loads(RUNS.read_text(encoding="utf-8"))
KEEPS, START = STORED["catalog"]["keeps"], STORED["start"]
ROWS, COLUMNS = STORED["catalog"]["pictures"][0]["views"][0]["grid"]
PATCHES = ROWS * COLUMNS
PLACES = STORED["parts"][STORED["runs"][0]["run"]["layers"]]["stage"]
ENCODER, LLM = PLACES.count("encoder"), PLACES.count("llm")
LAST = PLACES.index("llm") + LLM - 1  # where the last layer of the LLM stands
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>machine</title><style>body { margin: 12px; background: #fff } body.dark { background: #111 }</style>
<link rel="stylesheet" href="machine.css"><div id="here"></div><script src="machine.js"></script>
<script>window.colors = illava.machine.placeColor</script><script>window.stored = STORED;
window.machine = illava.machine.mount(document.getElementById("here"), stored)</script></html>"""
TERMS = "".join(
    re.findall(r"<span data-machine.*?</span>", (RUNS.parent / "machine.md").read_text(encoding="utf-8"), re.DOTALL)
)
CELL = """([at, patch]) => { const card = machine.page.cards.find(card => card.first === at), [x, y] = card.cells.box(patch),
    box = card.map.getBoundingClientRect(); return [box.x + x + card.cells.side / 2, box.y + y + card.cells.side / 2] }"""
PIXELS = """([at, patches]) => { const card = machine.page.cards.find(card => card.first === at),
    scale = card.map.width / card.map.clientWidth, half = card.cells.side / 2, pen = card.map.getContext('2d');
    return patches.map(patch => { const [x, y] = card.cells.box(patch);
      return [...pen.getImageData((x + half) * scale, (y + half) * scale, 1, 1).data] }) }"""
# From the moment an input is heard of until the frame that shows the run has been drawn.
STOPWATCH = """() => { window.times = []; const root = machine.page.root;
  root.addEventListener('input', () => { const start = performance.now(), before = root.dataset.shown;
    setTimeout(() => requestAnimationFrame(() => { const channel = new MessageChannel();
      channel.port1.onmessage = () => root.dataset.shown !== before && times.push(performance.now() - start);
      channel.port2.postMessage(0) })) }, true) }"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert chromium(), "ILLAVA_BROWSER=required, and there is no chromium on the PATH"
    with launched() as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page as the site has it, to be opened as a file."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "machine.css").write_text(front.style("machine"), encoding="utf-8")
    (folder / "machine.js").write_text(front.page_script("machine"), encoding="utf-8")
    page = PAGE.replace("STORED", RUNS.read_text(encoding="utf-8"))
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / "terms.html").write_text(page.replace("</div>", f"</div><p>{TERMS}</p>", 1), encoding="utf-8")
    return folder


def opened(browser: Browser, folder: Path, name: str = "index", **settings: Any) -> tuple[Page, list[str]]:
    """The page, and what it complains of: errors, and requests for anything but its own files."""
    page = browser.new_page(**{"viewport": {"width": 900, "height": 1000}, "reduced_motion": "reduce", **settings})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("request", lambda asked: asked.url.startswith((folder.as_uri(), "data:")) or complaints.append(asked.url))
    page.goto((folder / f"{name}.html").as_uri())
    page.wait_for_function("machine.page.root.dataset.shown === machine.page.root.dataset.wanted")
    return page, complaints


def tokens(page: Page) -> list[int]:
    """The numbers under the maps."""
    return [int(text) for text in page.locator(".im-count b").all_inner_texts()]


def point(page: Page, at: int, patch: int) -> None:
    """Put the mouse on the place of a patch in a map."""
    page.mouse.move(*page.evaluate(CELL, [at, patch]))


def colors(page: Page, at: int, *patches: int) -> list[list[int]]:
    """What is drawn in the middle of these patches: red, green, blue, opacity."""
    return page.evaluate(PIXELS, [at, patches])


def stored(page: Page) -> dict[str, Any]:
    """The run that the page says it shows, as it is stored."""
    picture, question, method, budget = json.loads(page.locator(".im").get_attribute("data-shown") or "")
    asked = {"picture": picture, "question": question, "method": method}
    fits = [run for run in STORED["runs"] if {name: run[name] for name in asked} == asked]
    name = "schedule" if isinstance(budget, dict) else "keep"
    run = next(run["run"] for run in fits if run[name] == budget and (name == "schedule" or not run["schedule"]))
    return {**run, "layers": STORED["parts"][run["layers"]]}


def at(patch: int) -> str:
    """Where a patch is, in words."""
    return f"row {patch // COLUMNS + 1}, column {patch % COLUMNS + 1}"


def fates(page: Page, at: int) -> dict[str, list[int]]:
    """The patches that have a token, have melted, have fallen."""
    script = """at => { const { token, owner } = machine.page.run.states[at], all = [...owner.keys()];
      return { token: all.filter(p => token[p] >= 0), melted: all.filter(p => token[p] < 0 && owner[p] >= 0),
               fallen: all.filter(p => owner[p] < 0) } }"""
    return page.evaluate(script, at)


# --------------------------------------------------------------------------------------------- on a page
def test_both_languages_have_the_same_colors(browser: Browser, folder: Path) -> None:
    page, _ = opened(browser, folder)
    places = np.random.default_rng(0).uniform(-0.1, 1.1, (2000, 2))
    drawn = page.evaluate("places => places.map(([x, y]) => colors(x, y))", places.tolist())
    assert np.array_equal(drawn, place_rgb(*places.T))
    assert f"LARGEST = {LARGEST};" in (front.FOLDER / "photo.js").read_text(encoding="utf-8")
    # And what is drawn is what the rule says: the first layer has all tokens, each in the colour of its place.
    row, column = np.divmod(np.arange(PATCHES), COLUMNS)
    want = place_rgb((column + 0.5) / COLUMNS, (row + 0.5) / ROWS)
    assert np.array_equal([color[:3] for color in colors(page, 0, *range(PATCHES))], want)
    page.close()


def test_by_mouse(browser: Browser, folder: Path) -> None:
    page, complaints = opened(browser, folder)
    said, last = page.locator(".im-said"), LAST
    page.locator(".im-methods label", has_text="tome").click()
    expect(page.get_by_label("tome")).to_be_checked()
    there = fates(page, last)
    assert len(there["token"]) == tokens(page)[-1] == round(START["keep"] * PATCHES) and not there["fallen"]
    melted = there["melted"][len(there["melted"]) // 2]
    home = page.evaluate(
        "([at, p]) => { const s = machine.page.run.states[at]; return s.anchor[s.owner[p]] }", [last, melted]
    )
    inside = set(
        page.evaluate(
            "([at, p]) => { const s = machine.page.run.states[at]; return s.members[s.owner[p]] }", [last, melted]
        )
    )
    assert colors(page, last, melted)[0] == colors(page, 0, home)[0], "a dot has the color of its token"
    # Pointing at it lights up its patches and its ancestors; leaving it gives everything back.
    before = page.locator(".im-photo").screenshot()
    point(page, last, melted)
    expect(said).to_contain_text(f"stands for {len(inside)} patches")
    expect(said).to_contain_text(at(melted))
    faint = {patch for patch, color in enumerate(colors(page, 0, *range(PATCHES))) if color[3] < 200}
    assert faint == set(range(PATCHES)) - inside
    assert page.locator(".im-photo").screenshot() != before
    page.mouse.click(*page.evaluate(CELL, [last, melted]))
    page.mouse.move(1, 1)
    expect(said).to_contain_text("stands for"), "it is followed"
    page.locator(".im-budget").fill("0")
    expect(page.locator(".im-kept")).to_have_text(f"{100 * KEEPS[0]:.0f} %")
    assert tokens(page)[-1] == round(KEEPS[0] * PATCHES)
    expect(said).to_contain_text("stands for"), "also in another run"
    page.mouse.click(*page.evaluate(CELL, [last, melted]))
    page.mouse.move(1, 1)
    expect(said).to_have_text("")
    # Pruning leaves empty places, and a patch that fell says where.
    page.locator(".im-methods label", has_text="fastv").click()
    there = fates(page, last)
    assert len(there["fallen"]) == PATCHES - round(KEEPS[0] * PATCHES) and not there["melted"]
    empty = there["fallen"][len(there["fallen"]) // 2]
    assert colors(page, last, empty)[0][3] == 0
    point(page, last, empty)
    layers = stored(page)["layers"]
    layer = next(layers["layer"][place] for place, count in enumerate(layers["tokens"]) if count < PATCHES)
    expect(said).to_have_text(f"{at(empty)}: fell at LLM layer {layer}; no token stands for this patch from there on.")
    # A handle goes to the nearest run that is stored; the answer and the table are of it.
    page.locator(".im-methods label", has_text="illava").click()
    page.locator(".im-budget").fill(str(len(KEEPS) - 1))
    assert set(tokens(page)) == {PATCHES}
    handle = page.get_by_label(f"Tokens kept at LLM layer {LLM - 2}")
    box = handle.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] - 4, box["y"] + 9)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 9, steps=8)
    page.mouse.up()
    half = round(0.5 * PATCHES)
    assert tokens(page)[-3:] == [PATCHES, half, half] and tokens(page)[0] == PATCHES, "only this layer, as it is stored"
    assert tokens(page) == stored(page)["layers"]["tokens"][:-1]
    expect(page.locator(".im-kept")).to_have_text("50 %, own schedule")
    for picture in STORED["catalog"]["pictures"]:
        page.locator(".im-pictures label", has=page.locator(f"img[alt={picture['name']}]")).click()
        for question in picture["questions"]:
            page.get_by_label("question").select_option(question)
            expect(page.locator(".im-text")).to_have_text(f"“{stored(page)['answer']['text']}”")
    page.locator("summary").click()
    assert page.locator("tbody tr").count() == len(PLACES) and page.locator("tbody tr").nth(0).inner_text().startswith(
        "patches"
    )
    page.get_by_text("Reset").click()
    assert page.evaluate("machine.page.root.dataset.shown") == json.dumps(
        [START["picture"], START["question"], START["method"], START["keep"]], separators=(",", ":")
    )
    assert complaints == []
    page.close()


def test_by_keyboard(browser: Browser, folder: Path) -> None:
    page, complaints = opened(browser, folder)
    focus = "document.activeElement"
    named = f"({focus}.getAttribute('aria-label') || {focus}.value || {focus}.textContent).slice(0, 60)"
    ring = f"getComputedStyle({focus}.matches('[type=radio]') ? {focus}.parentElement : {focus}).outlineStyle"
    stops = []
    while len(stops) < 40:
        page.keyboard.press("Tab")
        if page.evaluate(f"{focus} === document.body"):
            break
        stops.append(page.evaluate(named))
        assert page.evaluate(ring) == "solid", f"the focus on {stops[-1]} is seen"
    assert stops[1] == "question" and stops[3].startswith("keep") and stops[4:6] == ["▶ Watch it flow", "Reset"]
    handles = [stop.removeprefix("Tokens kept at ") for stop in stops if stop.startswith("Tokens kept")]
    assert handles == [*(f"encoder layer {i}" for i in range(ENCODER)), *(f"LLM layer {i}" for i in range(1, LLM))]
    maps = [stop for stop in stops if stop.startswith("After")]
    kept = round(START["keep"] * PATCHES)
    assert len(maps) == 1 and maps[0].startswith(f"After LLM layer {LLM - 1}: {kept} tokens"), (
        "one map is in the tab order"
    )
    # Arrow keys in every control; and in a map from token to token.
    page.locator(".im-methods input").first.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_label("tome")).to_be_checked()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_label("downsample")).to_be_checked()
    page.locator(".im-budget").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".im-kept")).to_have_text(f"{100 * KEEPS[KEEPS.index(START['keep']) + 1]:.0f} %")
    page.locator('.im-map[tabindex="0"]').focus()
    said, seen = page.locator(".im-said"), set()
    for key in ("Home", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft", "End"):
        page.keyboard.press(key)
        seen.add(said.inner_text())
        active = page.evaluate("machine.looking.active()")
        assert active["patch"] in fates(page, LAST)["token"] and active["token"] >= 0
    assert len(seen) == 6 and all(text.startswith(f"After LLM layer {LLM - 1}, the token at row") for text in seen)
    page.keyboard.press("PageUp")
    expect(said).to_contain_text(f"After LLM layer {LLM - 2}")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(said).to_contain_text(f"After LLM layer {LLM - 2}"), "it is followed"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Escape")
    expect(said).to_have_text("")
    # What cannot be seen is said, and described.
    expect(page.get_by_role("status")).to_contain_text("of the FLOPs")
    assert "After" in (page.locator(".im-map").first.get_attribute("aria-label") or "")
    assert complaints == []
    page.close()


def test_terms_of_the_text_light_up_what_they_name(browser: Browser, folder: Path) -> None:
    page, complaints = opened(browser, folder, "terms")
    lit = page.locator(".im-lit")
    cards = page.locator(".im-map").count()
    many = {"token": cards, "handle": page.locator(".im-keep").count(), "flops": cards, "cache": LLM}
    terms = page.locator("[data-machine]").all()
    assert len({term.get_attribute("data-machine") for term in terms}) == len(terms) >= 8
    for term in terms:
        term.hover()
        expect(lit).to_have_count(many.get(term.get_attribute("data-machine") or "", 1))
    page.mouse.move(5, 5)
    expect(lit).to_have_count(0)
    terms[0].focus()
    expect(lit).to_have_count(cards)
    assert lit.first.evaluate("node => getComputedStyle(node).outlineStyle") == "solid"
    page.set_viewport_size({"width": 900, "height": 300})
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    page.keyboard.press("Enter")
    expect(lit.first).to_be_in_viewport()
    assert complaints == []
    page.close()


def test_dark_narrow_and_without_motion(browser: Browser, folder: Path) -> None:
    page, complaints = opened(browser, folder)
    root = page.locator(".im")
    expect(root).to_have_attribute("data-theme", "light")
    ground = "getComputedStyle(document.querySelector('.im')).backgroundColor"
    bright = page.evaluate(ground)
    page.evaluate("document.body.classList.add('dark')")
    expect(root).to_have_attribute("data-theme", "dark")
    assert page.evaluate(ground) != bright
    for width in (360, 600, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        columns = (
            "() => new Set([...document.querySelectorAll('.im-map')].map(map => map.getBoundingClientRect().x)).size"
        )
        page.wait_for_function(
            f"count => ({columns})() === count", arg={360: 4, 600: 7, 1280: max(ENCODER, LLM) + 1}[width]
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    # Watching it, one layer after the other appears; nothing flies.
    flying = """() => { const sheet = document.querySelector('.im-overlay');
      return sheet.getContext('2d').getImageData(0, 0, sheet.width, sheet.height).data.some(value => value) }"""
    page.get_by_text("Watch it flow").click()
    page.wait_for_function("machine.page.reached >= 3")
    assert 2 <= page.locator(".im-waits").count() <= len(PLACES) - 3 and not page.evaluate(flying)
    page.get_by_text("Stop").click()
    expect(page.locator(".im-waits")).to_have_count(0)
    page.emulate_media(reduced_motion="no-preference")
    page.get_by_text("Watch it flow").click()
    page.wait_for_function(flying)
    expect(page.locator(".im-waits")).to_have_count(0)
    assert not page.evaluate(flying), "in the end all have arrived"
    assert complaints == []
    page.close()


def test_a_drag_is_followed_at_once(browser: Browser, folder: Path) -> None:
    page, complaints = opened(browser, folder, reduced_motion="no-preference")
    page.evaluate(STOPWATCH)
    box = page.locator(".im-budget").bounding_box()
    assert box
    page.mouse.move(box["x"] + 8, box["y"] + 9)
    page.mouse.down()
    for step in range(1000):
        share = abs(step % 40 / 20 - 1)
        page.mouse.move(box["x"] + 8 + share * (box["width"] - 16), box["y"] + 9)
        if step % 10 == 9 and page.evaluate("times.length") >= 50:
            break
    page.mouse.up()
    times = page.evaluate("times")
    print(f"a drag is drawn after {statistics.median(times):.0f} ms, the worst of {len(times)} {max(times):.0f} ms")
    # Where other programs run, the median says what these do; what the page itself needs, the quickest ones say.
    assert len(times) >= 50 and statistics.quantiles(times, n=4)[0] < 200
    assert complaints == []
    page.close()


# --------------------------------------------------------------------------------------------- in a notebook
@pytest.mark.network
@pytest.mark.slow
def test_in_a_notebook(browser: Browser, tmp_path: Path) -> None:
    cells = [
        "import illava_lab as il\nfrom illava_lab.widgets import Machine",
        'picture = il.data_dir() / "samples" / "shapes.png"',
        'machine = Machine(il.load(), picture, ["What color is the circle?", "How many stars are there?"])',
        "machine.show(keep=0.3)",
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": kernel}
    )
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks" / "machine.ipynb")
    with jupyterlab(tmp_path / "notebooks", tmp_path / "scratch") as server:
        reader = Reader(browser, server)
        reader.open("machine.ipynb")
        reader.run_all()
        machine = reader.page.locator(".im")
        settled(machine)
        assert json.loads(machine.get_attribute("data-shown") or "")[2:] == ["illava", 0.3]
        before = [int(text) for text in machine.locator(".im-count b").all_inner_texts()]
        shades = """photo => { const { data } = photo.getContext('2d').getImageData(0, 0, photo.width, photo.height);
          return new Set(data.filter((_, i) => i % 4 === 0)).size }"""
        assert machine.locator(".im-photo").evaluate(shades) > 50, "the photograph is there, and not only its shade"
        # A handle by mouse: the kernel computes the run, and the numbers are those of the schedule.
        handle = machine.get_by_label("Tokens kept at encoder layer 3")
        handle.scroll_into_view_if_needed()
        box = handle.bounding_box()
        assert box
        reader.page.mouse.move(box["x"] + box["width"] * int(handle.input_value()) / before[0], box["y"] + 9)
        reader.page.mouse.down()
        for share in (0.6, 0.5, 0.4):
            reader.page.mouse.move(box["x"] + box["width"] * share, box["y"] + 9)
        reader.page.mouse.up()
        settled(machine)
        schedule = json.loads(machine.get_attribute("data-shown") or "")[3]
        counts = [int(text) for text in machine.locator(".im-count b").all_inner_texts()]
        reduces = [str(layer) for layer in range(ENCODER) if before[layer + 1] < before[layer]]
        assert (
            counts[:4] == before[:4] and abs(counts[4] - 0.4 * before[0]) < 3 and list(schedule["encoder"]) == reduces
        )
        # Keys are the machine's, not JupyterLab's: another question, typed; and a map that lets no cell be deleted.
        field = machine.get_by_label("question")
        field.fill("How many stars are there?")
        field.press("Enter")
        settled(machine)
        picture = il.data_dir() / "samples" / "shapes.png"
        answer = il.load().ask(picture, "How many stars are there?", "illava", keep=0.3)
        expect(machine.locator(".im-text")).to_have_text(f"“{answer.text}”")
        chart = machine.locator('.im-map[tabindex="0"]')
        for key in ("ArrowDown", "d", "d", "x"):
            chart.press(key)
        assert reader.page.locator(".jp-CodeCell").count() == 4
        expect(machine.locator(".im-said")).to_contain_text("stands for")
        # Words that the model does not know are named.
        field.fill("   Where are the xyzzys?")
        field.press("Enter")
        settled(machine)
        expect(machine.locator(".im-status")).to_contain_text("xyzzys")
        # A page that is loaded again asks the kernel where it was.
        shown = machine.get_attribute("data-shown")
        reader.come_back()
        settled(machine)
        assert machine.get_attribute("data-shown") == shown
        assert reader.complaints == []
        reader.page.close()


def settled(machine: Locator) -> None:
    """What is wanted is shown."""
    machine.page.wait_for_function(
        "() => { const root = document.querySelector('.im'); return root && root.dataset.shown === root.dataset.wanted"
        " && !root.classList.contains('im-busy') }"
    )
