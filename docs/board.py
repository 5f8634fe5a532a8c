"""The leaderboard as a page shows it: tables that are whole without a script, and filters and a plot for one."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path
from typing import Any

import illava_lab as il
from illava_lab.views.colors import looks

ROWS = Path(__file__).resolve().parent.parent / "results" / "leaderboard" / "rows"
FOLDER = "leaderboard"  # of the site, where the files are for its links
NOTHING = "–"
FILTERS = {
    "model": "model",
    "task": "task",
    "method": "method",
    "kind": "budget",
    "device": "machine",
    "by": "measured by",
}
# name in the page -> (heading, has it numbers that can be drawn across)
COLUMNS = {
    "method": ("method", False), "budget": ("budget", False), "accuracy": ("accuracy %", False),
    "difference": ("to the bare model (95 %)", False), "flops": ("FLOPs", True), "tokens": ("tokens", True),
    "time": ("prefill time", True), "cache": ("KV cache", True), "model": ("model", False), "task": ("task", False),
    "device": ("machine", False), "date": ("date", False), "by": ("measured by", False), "file": ("file", False),
}  # fmt: skip


def rows() -> list[tuple[str, dict[str, Any]]]:
    """(name of the file, what it holds), in the order of the page."""
    found = [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in ROWS.glob("*.json")]
    return sorted(found, key=lambda pair: (pair[1]["model"], pair[1]["task"], -pair[1]["accuracy"], pair[0]))


def copy_rows(folder: Path) -> None:
    """Put the files beside the built page, which links to them."""
    shutil.copytree(ROWS, folder / FOLDER, dirs_exist_ok=True)


def board() -> str:
    """Filters, plot and table."""
    found = rows()
    filters = "".join(
        _select(key, name, sorted({_facts(row)[key] for _, row in found})) for key, name in FILTERS.items()
    )
    across = "".join(f'<option value="{key}">{head}</option>' for key, (head, drawn) in COLUMNS.items() if drawn)
    heads = "".join(f'<th scope="col" data-key="{key}">{head}</th>' for key, (head, _) in COLUMNS.items())
    body = "\n".join(_row(name, row) for name, row in found)
    drawn = json.dumps(looks(sorted({row["method"] for _, row in found})))
    return f"""```{{raw}} html
<div id="leaderboard">
<form class="filters" hidden>{filters}<button type="reset">show all</button></form>
<p class="count" role="status" hidden></p>
<figure class="tradeoff" hidden>
<label>across <select class="across">{across}</select></label>
<svg viewBox="0 0 800 400" role="group" aria-label="Accuracy of the rows shown, over what they cost"
 data-looks="{html.escape(drawn)}"></svg>
<figcaption>A point is a row: follow it to its line in the table. Lines join the budgets of one method.</figcaption>
</figure>
<div class="table-wrapper"><table class="docutils rows">
<thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div>
</div>
<script src="_static/markers.js"></script>
<script src="_static/leaderboard.js"></script>
```"""


def _select(key: str, name: str, values: list[str]) -> str:
    options = "".join(f"<option>{html.escape(value)}</option>" for value in values)
    return f'<label>{name} <select name="{key}"><option value="">all</option>{options}</select></label>'


def _facts(row: dict[str, Any]) -> dict[str, str]:
    """What a row is chosen by."""
    machine = row["machine"]
    device = (
        f"{machine['processor']}" if machine["device"] in ("x86_64", "aarch64", "arm64", "AMD64") else machine["device"]
    )
    graphs = ", graphs" if machine["graphs"] else ""
    return {
        "model": row["model"], "task": f"{row['task']}, {row['questions']:,} questions", "method": row["method"],
        "kind": row["budget"]["kind"], "device": f"{device}, {machine['dtype']}, batch {machine['batch_size']}{graphs}",
        "by": row["by"] or NOTHING,
    }  # fmt: skip


def _row(name: str, row: dict[str, Any]) -> str:
    facts = _facts(row)
    kind, amount = row["budget"].values()
    value, low, high = (100 * each for each in row["difference"])
    bare = row["method"] == "none"
    # key -> (what the column sorts by, what it shows)
    cells: dict[str, tuple[Any, str]] = {
        key: (facts[key], facts[key]) for key in ("model", "task", "method", "device", "by")
    }
    budget = f"{'FLOPs' if kind == 'flops' else kind} {amount}"
    cells["budget"] = (budget, NOTHING if bare else budget)
    cells["accuracy"] = (row["accuracy"], f"{100 * row['accuracy']:.1f}")
    cells["difference"] = (value, NOTHING if bare else f"{value:+.1f} ({low:+.1f} to {high:+.1f})")
    for key, name_in_row in {"flops": "flops_share", "tokens": "tokens_share", "cache": "cache_share"}.items():
        cells[key] = (row[name_in_row], f"{row[name_in_row]:.2f}")
    time = row["prefill_time"]
    cells["time"] = (time[0], f"{time[0]:.2f} ({time[1]:.2f} to {time[2]:.2f})") if time else ("", NOTHING)
    cells["date"] = (row["date"], row["date"])
    chosen = "".join(f' data-{key}="{html.escape(facts[key])}"' for key in FILTERS)
    shown = "".join(
        f'<td data-value="{html.escape(str(cells[key][0]))}">{html.escape(cells[key][1])}</td>'
        for key in COLUMNS
        if key != "file"
    )
    link = f'<td><a href="{FOLDER}/{html.escape(name)}">JSON</a></td>'
    return f'<tr id="row-{html.escape(name.removesuffix(".json"))}"{chosen}>{shown}{link}</tr>'


def reported() -> str:
    """Scores of papers beside that of the bare model, marked as theirs."""
    table = il.published(metric="score").dropna(subset=["baseline"])
    lines = [_reported(row) for row in table.itertuples()]
    heads = ("method", "model", "setting", "task", "score", "bare model", "of the bare model, %", "whose figure")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"""```{{raw}} html
<div class="table-wrapper" id="reported"><table class="docutils rows">
<thead><tr>{head}</tr></thead>
<tbody>
{chr(10).join(lines)}
</tbody></table></div>
```"""


def _reported(row: Any) -> str:
    numbers = (f"{row.value:g}", f"{row.baseline:g}", f"{100 * row.value / row.baseline:.1f}")
    cells = "".join(
        f"<td>{html.escape(text)}</td>" for text in (row.method, row.model, row.setting, row.task, *numbers)
    )
    source = f'<a href="{html.escape(_address(row.url_or_arxiv))}">{html.escape(row.source)}</a>'
    return f"<tr>{cells}<td>theirs: {source}, {html.escape(row.evidence)}</td></tr>"


def _address(source: str) -> str:
    return source if source.startswith("https://") else f"https://arxiv.org/abs/{source}"
