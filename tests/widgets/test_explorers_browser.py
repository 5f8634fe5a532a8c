"""The explorers in a real browser, on a page with the site's stored data and no kernel: mouse, keys, theme, width."""

from __future__ import annotations

import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import chromium, launched
from playwright.sync_api import Page, expect

from illava_lab.widgets import front

if not chromium() and os.environ.get("ILLAVA_BROWSER") != "required":  # as .ci/run says
    pytest.skip("the tests in a real browser are left out: there is no chromium on the PATH", allow_module_level=True)
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

CLONE = Path(__file__).resolve().parents[2]
FILES = {file.stem: file for file in sorted((CLONE / "docs" / "explorers").glob("*.json"))}
STORED = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
CATALOG, START, INTERVALS = (STORED["tradeoff"][name] for name in ("catalog", "start", "intervals"))
KINDS = [one["name"] for one in CATALOG["categories"]]
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>explorers</title><style>body { margin: 12px; background: #fff } body.dark { background: #111 }</style>
HEAD<body><script>for (const [name, stored] of Object.entries(STORED)) {
  const place = Object.assign(document.createElement("div"), { id: name });
  document.body.append(place);
  illava[name].mount(place, stored);
}</script></body></html>"""
# Where the ring lies in the plot.
RING = """() => { const [ring, plot] = [".im-ring", ".im-plot"].map(one => document.querySelector(one).getBoundingClientRect());
  return { x: ring.x + 11 - plot.x, y: ring.y + 11 - plot.y } }"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Opened as a file; at the end nothing was complained of, and nothing came from elsewhere."""
    assert chromium(), "ILLAVA_BROWSER=required, and there is no chromium on the PATH"
    folder, head = tmp_path_factory.mktemp("page"), ""
    for figure in front.PARTS:  # the machine's style lies beside theirs in a notebook
        (folder / f"{figure}.js").write_text(front.page_script(figure), encoding="utf-8")
        (folder / f"{figure}.css").write_text(front.style(figure), encoding="utf-8")
        head += f'<link rel="stylesheet" href="{figure}.css"><script src="{figure}.js"></script>'
    text = PAGE.replace("HEAD", head).replace("STORED", json.dumps(STORED))
    (folder / "index.html").write_text(text, encoding="utf-8")
    with launched() as browser:
        page, complaints = browser.new_page(viewport={"width": 900, "height": 1400}), list[str]()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on(
            "request", lambda asked: asked.url.startswith((folder.as_uri(), "data:")) or complaints.append(asked.url)
        )
        page.goto((folder / "index.html").as_uri())
        yield page
        assert complaints == []


def share(kinds: list[int], right: list[int]) -> str:
    """Accuracy within kinds of question, as it is written."""
    return f"{100 * sum(right[i] for i in kinds) / sum(CATALOG['categories'][i]['count'] for i in kinds):.1f} %"


def test_trade_off_by_keyboard_and_mouse(page: Page) -> None:
    figure = page.locator("#tradeoff")
    said, title, point = (
        figure.locator(".im-figure"),
        figure.get_by_role("status"),
        figure.get_by_role("combobox", name="point"),
    )
    names = [one["name"] for one in CATALOG["points"]]
    expect(title).to_contain_text(f"{sum(CATALOG['points'][START['point']]['count'])} questions lost that the bare")
    expect(figure.locator(".im-route")).to_have_count(len(CATALOG["methods"]))
    # Boxes by keyboard: what is not ticked is not drawn, and cannot be chosen.
    boxes = figure.locator("fieldset").nth(0).get_by_role("checkbox")
    markers = figure.locator("fieldset").nth(0).locator("label path")
    assert [path.get_attribute("fill") for path in markers.all()] == [one["color"] for one in CATALOG["methods"]]
    boxes.nth(0).focus()
    page.keyboard.press("Space")
    expect(figure.locator(".im-route")).to_have_count(len(CATALOG["methods"]) - 1)
    seen = [name for name, one in zip(names, CATALOG["points"], strict=True) if one["method"] != 0]
    assert point.locator("option").all_inner_texts() == seen
    # Two kinds only: shares and intervals of these, and their questions.
    figure.get_by_role("button", name="none: kinds of question").click()
    expect(title).to_have_text("Tick at least one kind of question.")
    kinds = [KINDS.index("count"), KINDS.index("word")]
    for name in ("count", "word"):
        figure.get_by_role("checkbox", name=name).check()
    point.select_option("tome at FLOPs 0.35")
    one = CATALOG["points"][names.index("tome at FLOPs 0.35")]
    low, high = INTERVALS[",".join(map(str, kinds))][names.index(one["name"])]
    expect(said).to_contain_text(f"{share(kinds, one['right'])} right, the bare model {share(kinds, CATALOG['bare'])}")
    expect(said).to_contain_text(f"−{abs(100 * low):.1f} to {'−' if high < 0 else '+'}{abs(100 * high):.1f}")
    lost = sum(one["count"][kind] for kind in kinds)
    expect(title).to_contain_text(f"{lost} questions lost in count, word that the bare model answers, 6 shown")
    first = sorted(pair for kind in kinds for pair in one["lost"][kind])[:6]
    wanted = [
        f"{q['question']}right: {q['answer']}, said: {said}"
        for q, said in ((CATALOG["questions"][at], s) for at, s in first)
    ]
    assert [card.text_content() for card in figure.locator("li").all()] == wanted
    # The mouse: another point is said, and a click chooses it.
    place, drawn = page.evaluate(RING), figure.locator(".im-plot")
    point.select_option("tome at FLOPs 0.7")
    drawn.hover(position=place)
    expect(figure.locator(".im-tip")).to_contain_text("tome at FLOPs 0.35")
    drawn.click(position=place)
    expect(point.locator("option:checked")).to_have_text("tome at FLOPs 0.35")
    figure.get_by_role("button", name="Reset").click()
    expect(point.locator("option:checked")).to_have_text(names[START["point"]])
    expect(figure.get_by_role("checkbox", checked=True)).to_have_count(len(CATALOG["methods"]) + len(KINDS))


def test_keep_slider_and_both_in_the_dark_on_a_phone(page: Page) -> None:
    figure, positions = page.locator("#keeps"), STORED["keeps"]["catalog"]["positions"]
    slider, images = figure.get_by_role("slider"), figure.get_by_role("img")
    slider.focus()
    page.keyboard.press("Home")
    for one in positions:
        expect(figure.locator(".im-kept")).to_have_text(f"{100 * one['keep']:.0f} %")
        expect(figure.get_by_role("status")).to_contain_text(f"“{one['answer']}”")
        assert [image.get_attribute("src") for image in images.all()[1:]] == [two["address"] for two in one["panels"]]
        page.keyboard.press("ArrowRight")
    roots = page.locator(".im")
    bright = roots.first.evaluate("root => getComputedStyle(root).backgroundColor")
    page.evaluate("document.body.classList.add('dark')")
    for root in roots.all():
        expect(root).to_have_attribute("data-theme", "dark")
        assert root.evaluate("root => getComputedStyle(root).backgroundColor") != bright
    page.set_viewport_size({"width": 360, "height": 800})
    page.wait_for_function("document.querySelector('.im-plot').getBoundingClientRect().right <= 360")
    page.wait_for_function("document.documentElement.scrollWidth <= 360")  # once all are drawn anew, nothing sticks out


def test_explorers_of_an_image_say_what_their_chapters_have_stored(page: Page) -> None:
    for name, chapter in (("merge", "02_merging_step_by_step"), ("redundancy", "01_token_redundancy")):
        said = page.locator(f"#{name}").get_by_role("status")
        expect(said).not_to_be_empty()
        assert said.inner_text() in _outputs(chapter), "python docs/explorer_runs.py makes them again"


def test_the_stored_data_are_those_of_the_model_and_the_chapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(CLONE / "docs"), *sys.path])
    made_again = "python docs/explorer_runs.py makes them again"
    runs = runpy.run_path(str(CLONE / "docs" / "explorer_runs.py"))
    assert set(FILES) == set(runs["EXPLORERS"]), made_again
    assert {stored["model"] for stored in STORED.values()} == {runs["model_digest"]()}, made_again
    assert all(file.stat().st_size < 1_000_000 for file in FILES.values())
    lost = sum(CATALOG["points"][START["point"]]["count"])
    stored = STORED["keeps"]
    said = stored["catalog"]["positions"][stored["at"]]["answer"]
    for chapter, words in (
        ("04_speed_and_accuracy", f"illava at FLOPs 0.35: {lost} questions lost that the bare model answers"),
        ("00_start_here", f"{stored['catalog']['question']} -> {said}"),
    ):
        assert words in _outputs(chapter), made_again


def _outputs(chapter: str) -> list[str]:
    cells: list[dict[str, Any]] = json.loads((CLONE / "notebooks" / f"{chapter}.ipynb").read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return ["".join(output.get("data", {}).get("text/plain", "")) for output in outputs]
