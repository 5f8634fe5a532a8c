"""What the site makes from the repository: the chapters from the notebooks, the list of methods from the registry."""

from __future__ import annotations

import html
import itertools
import re
import sys
from functools import partial
from pathlib import Path

import board
import nbformat

import illava_lab as il
from illava_lab.method.registry import OWN
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import FAMILIES
from illava_lab.models.frames import FRAMES
from illava_lab.schedules.presets import PRESETS, Preset
from illava_lab.widgets import front

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CLONE = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((CLONE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
PAGES = {"CONTRIBUTING.md": "../your_strategy.md"}  # files of the repository that are pages here
EXPLORERS = {  # figure -> its cell
    "tradeoff": "TradeoffExplorer(folder, task)",
    "keeps": "KeepSlider(lab, image, ",
    "designer": "ScheduleDesigner(lab, image, ",
    "merge": "merges.show(",
    "redundancy": "RedundancyExplorer(lab, images",
}
_NUMBERS = itertools.count(1)
WIDGET = "application/vnd.jupyter.widget-view+json"


# --------------------------------------------------------------------------------------------- the course
def write_chapters(folder: Path) -> None:
    """Write every notebook into `folder` as the site shows it; what is left of an earlier build goes."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.ipynb"):
        path.unlink()
    for path in sorted((CLONE / "notebooks").glob("*.ipynb")):
        (folder / path.name).write_text(_chapter(path), encoding="utf-8")


def _chapter(path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _links(cell.source)
            continue
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata.setdefault("tags", []).append("hide-input")
        for output in cell.outputs:
            if "data" in output:
                output.data = _page_data(output, cell.source)
    source = f"{REPOSITORY}/blob/main/notebooks/{path.name}"
    note = (
        "```{note}\nYou see the outputs that are stored in this chapter. To move all of its sliders, answer and solve, "
        f"open it in JupyterLab with `make lab` ({{doc}}`/install`). Its source: [{path.name}]({source}).\n```"
    )
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note, id="how-to-read-this"))
    return nbformat.writes(notebook)


def _links(text: str) -> str:
    """Links of a notebook, which is read inside the repository, for a page that is read outside."""
    text = re.sub(r"\]\(\.\./([\w./-]+)\)", lambda link: f"]({PAGES.get(link[1]) or _address(link[1])})", text)
    return re.sub(r"\[([^\]]*)\]\((#[\w-]+)\)", r'<a href="\2">\1</a>', text)  # to an <a id=...> of the same notebook


def _address(name: str) -> str:
    return f"{REPOSITORY}/{'tree' if (CLONE / name).is_dir() else 'blob'}/main/{name}"


def _page_data(output: nbformat.NotebookNode, source: str) -> dict[str, str]:
    """One form of an output that needs no kernel: of a widget, the picture or text beside it.

    Where a script runs, an explorer with stored data takes the place of its picture.
    """
    data, live = output.data, WIDGET in output.data
    if "image/png" not in data:
        return {kind: content for kind, content in data.items() if kind != WIDGET}
    alt = output.metadata.get("image/png", {}).get("alt") or "A picture, the result of the code above"
    picture = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    explorer = next((name for name, made in EXPLORERS.items() if live and made in source), None)
    if explorer:
        return {"text/html": _explorer(explorer, "../", f"<figure>{picture}</figure>")}
    where = (
        'here a picture of it. It runs <a href="../machine.html">on this site</a>, too.' if "Machine(" in source else ""
    )
    caption = f"<figcaption>Live in JupyterLab; {where or 'here a picture of it.'}</figcaption>" if live else ""
    return {"text/html": f"<figure>{picture}{caption}</figure>"}


# --------------------------------------------------------------------------------------------- live figures
def write_figures(folder: Path) -> None:
    """Write the front-ends and their data where the pages look for them: as scripts, which run from files, too."""
    docs = CLONE / "docs"
    stored = {"machine": docs / "machine.json"} | {name: docs / "explorers" / f"{name}.json" for name in EXPLORERS}
    for name, file in stored.items():
        (folder / f"{name}.js").write_text(front.page_script(name), encoding="utf-8")
        (folder / f"{name}.css").write_text(front.style(name), encoding="utf-8")
        text = f"(window.illavaData ??= {{}}).{name} = {file.read_text(encoding='utf-8').strip()};\n"
        (folder / f"{name}_data.js").write_text(text, encoding="utf-8")
    (folder / "markers.js").write_text(front.markers(), encoding="utf-8")


def _explorer(name: str, root: str, instead: str = "") -> str:
    """A live figure; `instead` is there where no script runs. `root`: the way to the top of the site."""
    number = next(_NUMBERS)
    return (
        f'<link rel="stylesheet" href="{root}_static/{name}.css">\n<div id="live-{number}">{instead}</div>\n'
        f'<script src="{root}_static/{name}.js"></script>\n<script src="{root}_static/{name}_data.js"></script>\n'
        f'<script>illava.{name}.mount(document.getElementById("live-{number}"), illavaData.{name});</script>\n'
    )


def _live(name: str) -> str:
    instead = "<noscript>Here runs a live figure: it needs JavaScript.</noscript>"
    return f"```{{raw}} html\n{_explorer(name, '', instead)}```"


# --------------------------------------------------------------------------------------------- the methods
def fill(text: str) -> str:
    """Put what is generated into a page, in the place of its mark."""
    marks = {
        "<!-- methods -->": _methods, "<!-- families -->": _families, "<!-- statistics -->": _statistics,
        "<!-- leaderboard -->": board.board, "<!-- reported -->": board.reported,
        **{f"<!-- {name} -->": partial(_live, name) for name in ("machine", *EXPLORERS)},
    }  # fmt: skip
    for mark, make in marks.items():
        if mark in text:
            text = text.replace(mark, make())
    return text.replace("](../notebooks/", "](course/")  # as links lead where these pages are read in the repository


def _statistics() -> str:
    rows = "\n".join(f"| `{name}` | {text} |" for name, text in il.STATISTICS.items())
    return f"| statistic | shape and meaning |\n|---|---|\n{rows}"


def _families() -> str:
    lines = ["| family | `model_type` | encoder stage | LLM stage | several images | video |", f"|{'---|' * 6}"]
    for kind, family in FAMILIES.items():
        video = "yes" if "video" in family.media else "frames as pictures" if kind in FRAMES else "-"
        lines.append(f"| {family.name} | `{kind}` | yes | yes | yes | {video} |")
    return "\n".join(lines)


def _methods() -> str:
    own = {name: cls for name, cls in il.strategies().items() if cls.__module__.startswith(f"{OWN}.")}
    rows = "\n".join(_row(name, cls) for name, cls in own.items())
    sections = "\n".join(_section(name, cls) for name, cls in own.items())
    return f"| name | kind | stages | what it does | paper |\n|---|---|---|---|---|\n{rows}\n\n{sections}"


def _row(name: str, cls: type[Strategy]) -> str:
    return f"| [`{name}`](<#{_anchor(name)}>) | {cls.kind} | {_stages(cls)} | {_summary(cls)} | {_paper(cls)} |"


def _section(name: str, cls: type[Strategy]) -> str:
    """Name, facts, the whole docstring with its settings, and the published settings of one method."""
    presets = [f"- `{key}`: {_preset(preset)}" for key, preset in PRESETS.items() if preset.strategy == name]
    listed = "\n".join(presets)
    published = (
        f"\nPublished settings, each as `lab.ask(image, question, preset=...)`:\n\n{listed}\n" if presets else ""
    )
    file = f"strategies/{cls.__module__.rpartition('.')[2]}.py"
    return (
        f"({_anchor(name)})=\n## {name}\n\n"
        f"{_summary(cls)}. {_paper(cls, long=True)}. Source: [{file}]({_address(file)}).\n\n"
        f"```{{eval-rst}}\n.. autoclass:: {cls.__module__}.{cls.__name__}\n   :no-index-entry:\n```\n{published}"
    )


def _preset(preset: Preset) -> str:
    settings = ", ".join(f"`{name}={value!r}`" for name, value in preset.settings.items())
    return f"{preset.source}; with {settings}" if settings else preset.source


def _anchor(name: str) -> str:
    return "method-" + name.replace("+", "-plus")


def _stages(cls: type[Strategy]) -> str:
    names = " and ".join("LLM" if stage == "llm" else stage for stage in cls.stages) or "no stage"
    return f"{names}, videos" if cls.media == ("video",) else names


def _summary(cls: type[Strategy]) -> str:
    """What its file says in the first line, behind the name."""
    line = sys.modules[cls.__module__].__doc__.partition("\n")[0].partition(": ")[2]
    return line[0].upper() + line[1:].rstrip(".")


def _paper(cls: type[Strategy], long: bool = False) -> str:
    if cls.paper is None:
        return "A baseline, from no paper" if long else "baseline"
    link = f"[{cls.paper.arxiv}](https://arxiv.org/abs/{cls.paper.arxiv})"
    return f"Paper: {cls.paper.title} ({cls.paper.year}), arXiv {link}" if long else f"{link} ({cls.paper.year})"
