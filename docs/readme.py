"""The README's table of strategies, from the registry: `python docs/readme.py` writes it anew."""

from __future__ import annotations

from pathlib import Path

import illava_lab as il
from illava_lab.method.declared import declared
from illava_lab.method.registry import KINDS, OWN
from illava_lab.method.strategy import Strategy

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- strategies, by docs/readme.py -->", "<!-- /strategies -->"
PLACES = {
    ("image",): "before the encoder", ("encoder",): "encoder", ("llm",): "LLM", ("encoder", "llm"): "encoder and LLM",
}  # fmt: skip


def table() -> str:
    """A row for each place, a column for each kind; videos apart."""
    own = {name: cls for name, cls in il.strategies().items() if cls.__module__.startswith(f"{OWN}.")}
    cells: dict[tuple[str, str], list[str]] = {}
    for name, cls in own.items():
        if cls.kind != "none":
            place = PLACES[declared(cls, "stages")] + (", videos" if declared(cls, "media") == ("video",) else "")
            cells.setdefault((place, declared(cls, "kind")), []).append(_link(name, cls))
    kinds = [kind for kind in KINDS if kind != "none"]
    lines = [f"| where | {' | '.join(kinds)} |", f"|{'---|' * (len(kinds) + 1)}"]
    for place in [name + more for name in PLACES.values() for more in ("", ", videos")]:
        row = [", ".join(cells.get((place, kind), [])) for kind in kinds]
        if any(row):
            lines.append(f"| {place} | {' | '.join(cell or '-' for cell in row)} |")
    return "\n".join(lines)


def _link(name: str, cls: type[Strategy]) -> str:
    paper = declared(cls, "paper")
    return f"[`{name}`](https://arxiv.org/abs/{paper.arxiv})" if paper else f"`{name}`"


def filled(text: str) -> str:
    """The README's text with the table of today."""
    head, _, rest = text.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
