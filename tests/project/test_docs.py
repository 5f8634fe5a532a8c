"""The documentation site builds offline without a warning, and what it shows is whole."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from helpers.browser import chromium, launched
from playwright.sync_api import expect

import illava_lab as il
from illava_lab import course, widgets
from illava_lab.__main__ import _parser, main
from illava_lab.method.registry import GROUP, OWN

pytestmark = pytest.mark.slow

CLONE = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((CLONE / "notebooks").glob("*.ipynb"))
RESULTS = sorted((CLONE / "results").glob("*/summary.txt"))

Site = dict[Path, BeautifulSoup]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Every page of a fresh build, parsed. Half a minute on one core, most of it the chapters."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "--fresh-env"]
    done = subprocess.run(
        [*build, "--doctree-dir", folder / "doctrees", CLONE / "docs", folder / "html"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = sorted((folder / "html").rglob("*.html"))
    return {
        page: BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        for page in pages
        if "_static" not in page.parts
    }


def page(site: Site, name: str) -> BeautifulSoup:
    return next(soup for path, soup in site.items() if path.as_posix().endswith(f"/html/{name}.html"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_chapter_shows_the_pictures_that_are_stored_in_it(site: Site, notebook: Path) -> None:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [out for cell in cells if cell["cell_type"] == "code" for out in cell["outputs"]]
    stored = [
        "".join("".join(out["data"]["image/png"]).split()) for out in outputs if "image/png" in out.get("data", {})
    ]
    shown = [
        image["src"].partition("base64,")[2] for image in page(site, f"course/{notebook.stem}").select("article img")
    ]
    assert stored and shown == stored
    alts = [
        out["metadata"]["image/png"]["alt"] for out in outputs if "alt" in out.get("metadata", {}).get("image/png", {})
    ]
    assert set(alts) <= {image["alt"] for image in page(site, f"course/{notebook.stem}").select("article img")}


def test_nothing_comes_from_outside(site: Site) -> None:
    outside = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
    for path, soup in site.items():
        for tag in soup.select("script, img, source, iframe, video, audio, object, embed, link, use, image"):
            for attribute in ("src", "srcset", "href", "data", "poster", "xlink:href"):
                address = tag.get(attribute, "")
                assert not outside.match(address), f"{path}: {tag}"
        assert not soup.select('script[type^="application/vnd.jupyter"]'), f"{path} waits for a kernel"
    sheets = list(min(site, key=lambda path: len(path.parts)).parent.rglob("*.css"))
    assert {"furo.css", "site.css"} <= {sheet.name for sheet in sheets}
    for sheet in sheets:
        loaded = re.findall(r"url\(\s*['\"]?([^)'\"]+)|@import\s+['\"]([^'\"]+)", sheet.read_text(encoding="utf-8"))
        assert not [address for address in map("".join, loaded) if outside.match(address)], sheet


def test_every_link_within_the_site_leads_somewhere(site: Site) -> None:
    anchors = {
        path: {tag[name] for name in ("id", "name") for tag in soup.select(f"[{name}]")} for path, soup in site.items()
    }
    for path, soup in site.items():
        for tag in soup.select("a[href], link[href], script[src], img[src]"):
            address = urlsplit(tag.get("href") or tag.get("src"))
            if address.scheme:
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            assert target.is_file(), f"{path.name}: {tag}"
            if address.fragment and target in anchors:
                assert unquote(address.fragment) in anchors[target], f"{path.name}: {tag}"


def test_pages_can_be_read_by_ear(site: Site) -> None:
    for path, soup in site.items():
        assert soup.html.get("lang"), path
        assert len(soup.select("h1")) == 1 or path.name == "search.html", path  # the theme's search page has none
        levels = [int(heading.name[1]) for heading in soup.select("article :is(h1, h2, h3, h4, h5, h6)")]
        assert all(after <= before + 1 for before, after in pairwise(levels)), f"{path}: {levels}"
        for image in soup.select("img"):
            assert image.get("alt", "").strip() or image.get("role") == "presentation", f"{path}: {str(image)[:200]}"


def test_every_method_of_the_registry_is_described(site: Site) -> None:
    text, described = page(site, "methods").get_text().replace("’", "'").replace("‘", "'"), 0  # as Sphinx sets them
    for name, cls in il.strategies().items():
        if cls.__module__.startswith(f"{OWN}."):  # other tests register theirs
            described += 1
            anchor = f"method-{name.replace('+', '-plus')}"
            assert cls.paper is None or cls.paper.title in text
            section = page(site, "methods").select_one(f"section:has(> #{anchor}), section#{anchor}").get_text()
            assert {field.name for field in dataclasses.fields(cls)} <= set(re.findall(r"\w+", section)), name
    assert described == len(list((CLONE / "strategies").glob("[!_]*.py"))) + 1  # prumerge.py has two


@pytest.mark.parametrize("summary", RESULTS, ids=lambda path: path.parent.name)
def test_every_measured_table_is_shown_as_it_is_stored(site: Site, summary: Path) -> None:
    name = "speed" if summary.parent.name == "gpu" else "results"
    assert summary.read_text(encoding="utf-8").strip() in page(site, name).get_text(), f"docs/{name}.md leaves it out"


@pytest.mark.browser
@pytest.mark.skipif(
    not chromium() and os.environ.get("ILLAVA_BROWSER") != "required", reason="there is no chromium on the PATH"
)
def test_every_live_figure_lives_in_the_page(site: Site) -> None:
    """Opened as files: each figure is drawn, follows a key and the theme, fits a phone, and asks nobody for anything."""
    home = min(site, key=lambda path: len(path.parts)).parent
    live = {path: [tag["id"] for tag in soup.select('[id^="live-"]')] for path, soup in site.items()}
    assert sum(map(len, live.values())) >= 2 + 5 + 5, "the machine twice, each explorer here and in its chapter"
    with launched() as browser:
        opened, complaints = browser.new_page(reduced_motion="reduce"), list[str]()
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on(
            "request", lambda asked: asked.url.startswith((home.as_uri(), "data:")) or complaints.append(asked.url)
        )
        for path, names in live.items():
            if not names:
                continue
            opened.set_viewport_size({"width": 1280, "height": 900})
            opened.goto(path.as_uri())
            for name in names:
                figure = opened.locator(f"#{name}.im")
                control = figure.locator("input[type=range], input[type=checkbox]").first
                expect(control).to_be_attached()
                opened.wait_for_function("id => document.getElementById(id).innerText.length > 80", arg=name)
                before = figure.inner_text()
                slider = control.get_attribute("type") == "range"
                least = slider and control.input_value() == control.get_attribute("min")
                control.press(("ArrowRight" if least else "ArrowLeft") if slider else "Space")
                opened.wait_for_function(
                    "([id, text]) => document.getElementById(id).innerText !== text", arg=[name, before]
                )
            opened.evaluate("document.body.dataset.theme = 'dark'")
            opened.set_viewport_size({"width": 390, "height": 800})
            for name in names:
                expect(opened.locator(f"#{name}")).to_have_attribute("data-theme", "dark")
                fits = "id => document.getElementById(id).getBoundingClientRect().right <= 390"
                opened.wait_for_function(fits, arg=name)
        assert complaints == []


def test_the_reference_has_everything_public(site: Site) -> None:
    described = {
        tag["id"] for path, soup in site.items() if path.parent.name == "reference" for tag in soup.select("[id]")
    }
    for module in (il, widgets, course):
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing) and not isinstance(thing, ModuleType):  # a constant has no docstring to show
                continue
            own = f"module-{thing.__name__}" if isinstance(thing, ModuleType) else f"{module.__name__}.{name}"
            if name != "strategies":  # called, it is a function; its methods have a page of their own
                assert own in described, f"docs/reference lacks {own}"


def test_the_strategies_on_the_page_keep_their_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (CLONE / "docs" / "your_strategy.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "@il.register" in block]
    assert len(blocks) == 4
    (tmp_path / "methods.py").write_text("\n".join(blocks), encoding="utf-8")
    assert main(["check", str(tmp_path / "methods.py")]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("largest-norm", "fold-by-norm", "first-look", "stands-still"))
    (package,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert f'[project.entry-points."{GROUP}"]\nmy-methods = "my_methods"' in package and "`my_methods.py`" in text
    (commands,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    for command in commands.splitlines():
        _parser().parse_args(command.split()[1:])


def test_troubleshooting_quotes_messages_that_exist() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (CLONE / "illava_lab").rglob("*.py"))
    code = re.sub(r"[\"']\s*\n\s*f?[\"']", "", code)  # a message in two lines of code
    code = re.sub(r"\{[^{}]*\}", "...", code) + (CLONE / "Makefile").read_text(encoding="utf-8")
    text = (CLONE / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [
        message for line in re.findall(r"^(`.*)\n: ", text, re.MULTILINE) for message in re.findall(r"`([^`]+)`", line)
    ]
    assert len(quoted) > 30
    for message in quoted:
        for fragment in filter(None, (part.strip(" ;,?'") for part in message.split("..."))):
            assert fragment in code, f"nothing says {fragment!r}"
