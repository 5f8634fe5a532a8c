"""The explorers of an image on a page without a kernel: they say, light up and compare what Python does."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers.browser import chromium, launched
from PIL import Image
from playwright.sync_api import Locator, Page, expect

import illava_lab as il
from illava_lab.measuring.redundancy import clusters, similarity
from illava_lab.widgets import MergeExplorer, RedundancyExplorer, front

if not chromium() and os.environ.get("ILLAVA_BROWSER") != "required":  # as .ci/run says
    pytest.skip("the tests in a real browser are left out: there is no chromium on the PATH", allow_module_level=True)
pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

QUESTION, COUNT, SIDE = "What is the word?", 196, 14
METHODS = ("illava", "tome", "pool", "fastv", "random")
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>explorers</title><style>body { margin: 12px; background: #fff } body.dark { background: #111 }</style>
HEAD<body><script>window.explorers = {}; window.stored = STORED;
for (const name of ["merge", "redundancy"]) {
  const place = Object.assign(document.createElement("div"), { id: name });
  document.body.append(place);
  explorers[name] = illava[name].mount(place, stored[name]);
}</script></body></html>"""
MOVE = """([name, settings]) => { explorers[name].want(settings);
  return explorers[name].root.querySelector("[role=status]").textContent }"""
# Whether the middle of each cell of each panel is lit: clear, where others are in the shade.
LIT = """name => explorers[name].panels.panels.map(({ above }) => { const pen = above.getContext("2d");
    return [...Array(196).keys()].filter(patch => { const [row, column] = [Math.floor(patch / 14), patch % 14];
      const [x, y] = [column, row].map(place => (place + 0.5) * above.width / 14);
      return pen.getImageData(x, y, 1, 1).data[3] === 0 }) })"""
# A notebook's side of the front-end, with numbers as a kernel sends them.
NOTEBOOK = """() => { const { catalog, start, numbers } = stored.redundancy, told = [];
  const bytes = text => new DataView(Uint8Array.from(atob(text), one => one.charCodeAt(0)).buffer);
  const sent = ([key, one]) => [key, { ...one, cosines: bytes(one.cosines), others: bytes(one.others) }];
  const all = Object.fromEntries(Object.entries(numbers).map(sent));
  const state = { catalog, numbers: { "0,0": all["0,0"] }, start, shown: start }, el = document.createElement("div");
  const heard = { on: (what, told) => (heard[what] = told), off: () => null, get: name => state[name], save_changes: () => null,
                  set: (name, value) => { state[name] = value; told.push(value) } };
  el.id = "notebook";
  document.body.append(el);
  window.notebook = { state, all, told, heard, close: illava.redundancy.render({ model: heard, el }) } }"""


@pytest.fixture(scope="module")
def explorers() -> dict[str, Any]:
    lab, image = il.load(), il.load_task("test").image("test-0006")
    images = {"scene": image, "grey": Image.new("RGB", (112, 112), "grey")}
    with pytest.MonkeyPatch.context() as patched:  # as for a large model: the numbers of ten layers at a time
        patched.setattr("illava_lab.widgets.redundancy_explorer.PAIRS", 10 * COUNT**2)
        redundancy = RedundancyExplorer(lab, images, QUESTION, patch=20)
    return {"merge": MergeExplorer(lab, image, QUESTION, METHODS, keep=0.3, patch=20), "redundancy": redundancy}


@pytest.fixture(scope="module")
def page(explorers: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Opened as a file; at the end nothing was complained of, and nothing came from elsewhere."""
    assert chromium(), "ILLAVA_BROWSER=required, and there is no chromium on the PATH"
    folder, head = tmp_path_factory.mktemp("page"), ""
    for figure in explorers:
        (folder / f"{figure}.js").write_text(front.page_script(figure), encoding="utf-8")
        (folder / f"{figure}.css").write_text(front.style(figure), encoding="utf-8")
        head += f'<link rel="stylesheet" href="{figure}.css"><script src="{figure}.js"></script>'
    stored = json.dumps({name: one.store() for name, one in explorers.items()}, allow_nan=False)
    (folder / "index.html").write_text(PAGE.replace("HEAD", head).replace("STORED", stored), encoding="utf-8")
    with launched() as browser:
        page, complaints = browser.new_page(viewport={"width": 900, "height": 1000}), list[str]()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on(
            "request", lambda asked: asked.url.startswith((folder.as_uri(), "data:")) or complaints.append(asked.url)
        )
        page.goto((folder / "index.html").as_uri())
        for image, block in ((1, 1), (1, 0), (0, 1), (0, 0)):  # each is unpacked when it is first shown
            key, place = f"{image},{block}", [{"stage": "encoder", "layer": 0}, {"stage": "llm", "layer": 6}][block]
            page.evaluate(MOVE, ["redundancy", {"image": ["scene", "grey"][image], **place}])
            page.wait_for_function("key => explorers.redundancy.known.get(key)", arg=key)
        yield page
        assert complaints == []


def point(page: Page, name: str, panel: int, patch: int, click: bool = False) -> None:
    """Put the mouse on a patch."""
    over = page.locator(f"#{name} .im-over").nth(panel)
    over.scroll_into_view_if_needed()
    box = over.bounding_box()
    assert box is not None
    row, column = divmod(patch, SIDE)
    side = box["width"] / SIDE
    (page.mouse.click if click else page.mouse.move)(box["x"] + (column + 0.5) * side, box["y"] + (row + 0.5) * side)


def told(figure: Locator) -> Locator:
    return figure.get_by_role("status")


def some(explorers: dict[str, Any], name: str, count: int) -> list[dict[str, Any]]:
    """Settings by chance, the same each time."""
    chance, out = np.random.default_rng(0), []
    for _ in range(count):
        patch = int(chance.integers(COUNT))
        if name == "merge":
            strategy = str(chance.choice(METHODS))
            steps = len(explorers[name].answers[strategy].trace.steps)
            out.append({"strategy": strategy, "step": int(chance.integers(steps + 1)), "patch": patch})
        else:
            stage = str(chance.choice(["encoder", "llm"]))
            layers = len(explorers[name].recordings["scene"].hidden[stage])
            image = "grey" if chance.random() < 0.2 else "scene"
            out.append({"image": image, "stage": stage, "layer": int(chance.integers(layers)), "patch": patch,
                        "centred": bool(chance.random() < 0.5), "third": str(chance.choice(["groups", "attention"]))})  # fmt: skip
    return out


# --------------------------------------------------------------------------------------------- as Python has it
@pytest.mark.parametrize("name", ["merge", "redundancy"])
def test_both_languages_say_the_same(page: Page, explorers: dict[str, Any], name: str) -> None:
    chosen = some(explorers, name, 150)
    said = [page.evaluate(MOVE, [name, settings]) for settings in chosen]
    assert said == [explorers[name].describe(**settings) for settings in chosen]


def test_tokens_are_those_of_the_trace(page: Page, explorers: dict[str, Any]) -> None:
    for strategy, answer in explorers["merge"].answers.items():
        for step in range(len(answer.trace.steps) + 1):
            page.evaluate(MOVE, ["merge", {"strategy": strategy, "step": step}])
            lit = page.evaluate("count => [...Array(count).keys()].map(patch => explorers.merge.lit(patch))", COUNT)
            sources = answer.trace.sources(0, step)
            own = [sources.patches(token) for token in range(len(sources.anchor))]
            want = [own[token] if token >= 0 else [patch] for patch, token in enumerate(sources.owner().tolist())]
            assert lit == want, "heaviest first, too"


def test_cosines_groups_and_attention(page: Page, explorers: dict[str, Any]) -> None:
    for settings in some(explorers, "redundancy", 40):
        page.evaluate(MOVE, ["redundancy", settings])
        recording = explorers["redundancy"].recordings[settings["image"]]
        stage, layer, centred = (settings[name] for name in ("stage", "layer", "centred"))
        x = recording.hidden[stage][layer]
        table, owner, times = (
            np.array(page.evaluate(f"[...explorers.redundancy.{part}]")) for part in ("table", "groups.owner", "times")
        )
        assert np.abs(table.reshape(COUNT, COUNT) / 100 - similarity(x, centred).numpy()).max() < 0.00501
        assert np.array_equal(owner, clusters(x, 0.9, centred))
        paid = recording.attention[stage]
        if layer < len(paid):
            assert np.abs(times / 10 - (paid[layer] / paid[layer].mean()).numpy()).max() < 0.0501


# --------------------------------------------------------------------------------------------- mouse and keys
def test_merges_by_mouse_and_keys(page: Page, explorers: dict[str, Any]) -> None:
    merge, figure = explorers["merge"], page.locator("#merge")
    tip, patch = figure.locator(".im-tip"), figure.get_by_role("spinbutton")
    figure.get_by_role("button", name="Reset").click()
    expect(told(figure)).to_have_text(merge.describe(strategy="illava", step=0, patch=20))
    # Keys on slider and list, a number in the field, arrows on the first panel.
    figure.get_by_role("slider").focus()
    page.keyboard.press("End")
    expect(told(figure)).to_have_text(merge.describe(strategy="illava", step=5, patch=20))
    page.keyboard.press("ArrowLeft")
    expect(told(figure)).to_have_text(merge.describe(strategy="illava", step=4, patch=20))
    patch.fill("99")
    expect(told(figure)).to_have_text(merge.describe(strategy="illava", step=4, patch=99))
    patch.fill("500")
    patch.press("Enter")
    expect(told(figure)).to_have_text(merge.describe(strategy="illava", step=4, patch=COUNT - 1))
    figure.get_by_role("application").focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowUp", "ArrowLeft"):  # the first two lead out of the picture
        page.keyboard.press(key)
    expect(patch).to_have_value(str(COUNT - 1 - SIDE - 1))
    # Pointing: the patches of one token light up in all panels, with words; nothing is picked.
    sources = merge.answers["illava"].trace.sources(0, 4)
    token = int((sources.weights != 0).sum(1).argmax())
    own = sources.patches(token)
    for panel in range(4):
        point(page, "merge", panel, own[1])
        expect(tip).to_contain_text(f"patch {own[1]}: weight {float(sources.weights[token, own[1]]):.3f} in the token")
        expect(tip).to_contain_text(f"stands for {len(own)} patches")
        assert page.evaluate(LIT, "merge") == [sorted(own)] * 4
    expect(patch).to_have_value(str(COUNT - 1 - SIDE - 1))
    # Another strategy, by keys, while the mouse rests: what was said is not true of it, and is gone.
    figure.get_by_role("combobox").select_option("tome")
    expect(told(figure)).to_contain_text("tome, encoder layer 3")
    expect(tip).to_be_hidden()
    assert page.evaluate(LIT, "merge") == [list(range(COUNT))] * 4
    # A click picks; where a method has fewer steps, its last one is shown, and scores say their rank.
    point(page, "merge", 2, own[1], click=True)
    expect(patch).to_have_value(str(own[1]))
    figure.get_by_role("combobox").select_option("fastv")
    expect(told(figure)).to_have_text(merge.describe(strategy="fastv", step=1, patch=own[1]))
    scores = merge.answers["fastv"].trace.steps[0].scores[0]
    point(page, "merge", 1, int(scores[-COUNT:].argmax()))
    expect(tip).to_contain_text(f"score {float(scores.max()):.4g}, rank 1 of {COUNT}")
    page.mouse.move(0, 0)
    expect(tip).to_be_hidden()
    figure.get_by_role("button", name="Reset").click()
    expect(told(figure)).to_have_text(merge.describe(strategy="illava", step=0, patch=20))


def test_likeness_by_mouse_and_keys(page: Page, explorers: dict[str, Any]) -> None:
    redundancy, figure = explorers["redundancy"], page.locator("#redundancy")
    tip, recording = figure.locator(".im-tip"), redundancy.recordings["scene"]
    figure.get_by_role("button", name="Reset").click()
    figure.get_by_role("combobox", name="stage").select_option("LLM")
    figure.get_by_role("slider").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    figure.get_by_role("checkbox").check()
    shown = {"image": "scene", "stage": "llm", "layer": 3, "patch": 20, "centred": True, "third": "groups"}
    expect(told(figure)).to_have_text(redundancy.describe(**shown))
    x = recording.hidden["llm"][3]
    point(page, "redundancy", 1, 37)
    cosine = float(similarity(x, True)[20, 37])
    expect(tip).to_have_text(f"patch 37: row 2, column 9\ncosine to patch 20: {cosine:.2f}", use_inner_text=True)
    assert page.evaluate(LIT, "redundancy") == [list(range(COUNT))] * 3, "nothing is in the shade"
    groups = clusters(x, 0.9, True)
    largest = (groups == groups.bincount().argmax()).nonzero()[:, 0].tolist()
    point(page, "redundancy", 2, largest[0])
    expect(tip).to_contain_text(f"in a group of {len(largest)}")
    assert page.evaluate(LIT, "redundancy") == [largest] * 3
    figure.get_by_role("combobox", name="right panel").select_option("attention in this layer")
    expect(tip).to_be_hidden()
    point(page, "redundancy", 2, 50)
    paid = recording.attention["llm"][3]
    expect(tip).to_contain_text(f"{float(paid[50] / paid.mean()):.1f} times the mean")
    figure.get_by_role("slider").focus()
    page.keyboard.press("End")
    expect(figure).to_contain_text("what leaves a stage has no attention of its own")
    point(page, "redundancy", 0, 36, click=True)
    expect(told(figure)).to_have_text(redundancy.describe(**{**shown, "layer": 6, "patch": 36}))
    figure.get_by_role("combobox", name="image").select_option("grey")
    expect(told(figure)).to_contain_text("grey, what leaves the LLM")
    figure.get_by_role("button", name="Reset").click()
    expect(told(figure)).to_have_text(redundancy.describe(**redundancy.settings))


def test_in_a_notebook_the_kernel_hears_and_is_heard(page: Page, explorers: dict[str, Any]) -> None:
    page.evaluate(NOTEBOOK)
    figure, redundancy = page.locator("#notebook"), explorers["redundancy"]
    expect(told(figure)).to_have_text(redundancy.describe(**redundancy.settings))
    figure.get_by_role("spinbutton").fill("77")
    assert page.evaluate("notebook.told.at(-1)") == {**redundancy.settings, "patch": 77}
    moved = {**redundancy.settings, "layer": 2}
    page.evaluate("shown => { notebook.state.shown = shown; notebook.heard['change:shown']() }", moved)
    expect(told(figure)).to_have_text(redundancy.describe(**moved))
    # What the kernel has not compared yet is waited for, in words, and then shown.
    figure.get_by_role("combobox", name="image").select_option("grey")
    expect(told(figure)).to_contain_text("comparing")
    page.evaluate("() => { notebook.state.numbers = notebook.all; notebook.heard['change:numbers']() }")
    expect(told(figure)).to_have_text(redundancy.describe(**{**moved, "image": "grey"}))
    page.evaluate("() => { notebook.close(); document.getElementById('notebook').remove() }")


def test_in_the_dark_and_on_a_phone(page: Page) -> None:
    widths = """() => [...document.querySelectorAll('.im-cells')].map(cells =>
        [cells.clientWidth, cells.querySelector('.im-over').clientWidth])"""
    wide = page.evaluate(widths)
    assert all(panel == canvas > 190 for panel, canvas in wide), "panels fill the page"
    page.evaluate("document.body.classList.add('dark')")
    for name in ("merge", "redundancy"):
        expect(page.locator(f"#{name}")).to_have_attribute("data-theme", "dark")
    page.set_viewport_size({"width": 360, "height": 800})
    page.wait_for_function(f"({widths})().every(([panel, canvas]) => panel === canvas && panel < 310)")
    page.wait_for_function("document.documentElement.scrollWidth <= 360")  # once all are drawn anew, nothing sticks out
    for name in ("merge", "redundancy"):
        boxes = [over.bounding_box() for over in page.locator(f"#{name} .im-over").all()]
        assert boxes[0]["y"] == boxes[1]["y"] < boxes[2]["y"], "two beside each other"
    point(page, "redundancy", 2, 150, click=True)  # in the panel that is wider than the others
    expect(page.locator("#redundancy").get_by_role("spinbutton")).to_have_value("150")
