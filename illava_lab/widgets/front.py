"""The front-ends of figures, each as one module: plain scripts behind each other that need nothing from elsewhere."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "web"
# The scripts of each figure. Each uses only what stands before it.
PARTS = {
    "machine": (
        "color", "run", "map", "photo", "dom", "marker", "theme", "words", "source", "cards", "answer", "controls",
        "motion", "looking", "page", "terms", "machine",
    ),
    "tradeoff": ("dom", "marker", "theme", "plot", "lost", "tradeoff"),
    "keeps": ("dom", "theme", "keeps"),
    "merge": ("color", "run", "map", "photo", "dom", "theme", "grid", "gridcontrols", "gridfigure", "merge"),
    "redundancy": ("color", "run", "map", "photo", "dom", "theme", "grid", "gridcontrols", "gridfigure", "redundancy"),
    "designer": ("dom", "theme", "designer_rule", "designer_layers", "designer_costs", "designer"),
}  # fmt: skip


@cache
def script(figure: str) -> str:
    """One ES module without imports, for anywidget; its default export has `render`, and `mount` for pages.

    Modules that import each other by name cannot be loaded as a text or from a file, so their imports and exports are
    taken out and they share one scope.
    """
    parts = [(FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in PARTS[figure]]
    text = "\n".join(re.sub(r"^import [^;]*;\n", "", part, flags=re.MULTILINE) for part in parts)
    return re.sub(r"^export (?=async|class|const|function|let)", "", text, flags=re.MULTILINE)


@cache
def style(figure: str) -> str:
    """Its style sheet: what all figures share, and what belongs to its scripts."""
    sheets = [FOLDER / f"{name}.css" for name in ("base", *PARTS[figure])]
    return "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets if sheet.exists())


def page_script(figure: str) -> str:
    """The same as a plain script for a page, where it is `illava.FIGURE`; it runs from a file, too."""
    code = script(figure).replace("export default", f"(window.illava ??= {{}}).{figure} =")
    return f"(() => {{\n{code}\n}})();\n"


def markers() -> str:
    """Outlines of the methods' markers, as a plain script in which they are `illavaMarkers`: name -> SVG path."""
    code = (FOLDER / "marker.js").read_text(encoding="utf-8")
    start = code.index("{", code.index("const MARKERS"))
    return f"window.illavaMarkers = {code[start : code.index('};', start) + 1]};\n"
