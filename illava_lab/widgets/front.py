"""The machine's front-end as one module: plain scripts, put one behind the other, that need nothing from elsewhere."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "web"
# Each uses only what stands before it.
PARTS = (
    "color",
    "run",
    "map",
    "photo",
    "words",
    "source",
    "cards",
    "answer",
    "controls",
    "motion",
    "looking",
    "page",
    "machine",
)


@cache
def script() -> str:
    """One ES module without imports, for anywidget; its default export has `render`, and `mount` for pages.

    Modules that import each other by name cannot be loaded as a text or from a file, so their imports and exports are
    taken out and they share one scope.
    """
    parts = [(FOLDER / f"{name}.js").read_text(encoding="utf-8") for name in PARTS]
    text = "\n".join(re.sub(r"^import [^;]*;\n", "", part, flags=re.MULTILINE) for part in parts)
    return re.sub(r"^export (?=async|class|const|function|let)", "", text, flags=re.MULTILINE)


@cache
def style() -> str:
    """Its style sheet."""
    return (FOLDER / "machine.css").read_text(encoding="utf-8")


def page_script() -> str:
    """The same as a plain script for a page, where it is `illavaMachine`; it runs from a file, too."""
    return f"(() => {{\n{script().replace('export default', 'window.illavaMachine =')}\n}})();\n"
