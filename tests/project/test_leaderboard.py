"""The leaderboard: every file fits the schema and the others, what `submit` writes too, and the page sorts and draws them."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import chromium, launched
from jsonschema import Draft202012Validator

import illava_lab as il
from illava_lab.__main__ import main
from illava_lab.measuring import loglines
from illava_lab.measuring.leaderboard import file_name, submit
from illava_lab.views.colors import looks
from illava_lab.widgets import front

CLONE = Path(__file__).resolve().parents[2]
ROWS = CLONE / "results" / "leaderboard" / "rows"
sys.path[:0] = [str(CLONE / "results"), str(CLONE / "docs")]  # the scripts there are no packages

import board  # noqa: E402
import make_leaderboard  # noqa: E402

SCHEMA = json.loads((ROWS.parent / "schema.json").read_text(encoding="utf-8"))
Draft202012Validator.check_schema(SCHEMA)
VALID = Draft202012Validator(SCHEMA)

Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(ROWS.iterdir())}


def comparison(row: Row) -> str:
    """What the rows of one comparison share."""
    shared = ("model", "weights", "task", "questions_digest", "questions", "machine", "by")
    return json.dumps([row[name] for name in shared])


# ---------------------------------------------------------------------------------------------- the files
def test_every_file_fits_the_schema_and_the_others(rows: dict[str, Row]) -> None:
    bare = {comparison(row): row for row in rows.values() if row["method"] == "none"}
    assert len(rows) > 30
    for name, row in rows.items():
        errors = [f"{error.json_path}: {error.message}" for error in VALID.iter_errors(row)]
        assert not errors, f"{name}: {errors}"
        assert name == file_name(row), f"{name} should be named {file_name(row)}, as illava-lab submit names it"
        assert comparison(row) in bare, f"{name}: the row of none, with which it is compared, is missing"
        other = bare[comparison(row)]
        value, low, high = row["difference"]
        assert low <= value <= high, name
        assert value == pytest.approx(row["accuracy"] - other["accuracy"], abs=2e-6), name
        for amount, share in (("tokens", "tokens_share"), ("flops", "flops_share"), ("cache_bytes", "cache_share")):
            assert row[share] == pytest.approx(row[amount] / other[amount], abs=2e-6), name
        for time in filter(None, (row["prefill_time"], row["decode_time"])):
            assert time[1] <= time[0] <= time[2], name


def test_the_labs_own_rows_are_those_of_its_tables(rows: dict[str, Row]) -> None:
    own = {name: row for name, row in rows.items() if row["by"] == make_leaderboard.BY}
    assert own == make_leaderboard.rows(), "make leaderboard"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("accuracy", 97.5), ("accuracy", None), ("model", "/somewhere/model"), ("model", "random:llava-1.5-7b"),
        ("task", "../mine.parquet"), ("budget", {"kind": "keep", "amount": 50}), ("budget", {"kind": "preset", "amount": 0.5}),
        ("difference", [0.1]), ("prefill_time", [0, 0, 0]), ("date", "yesterday"), ("weights", "none"), ("more", 1),
        ("by", ""), ("format", 2), ("questions", 0),
    ],
)  # fmt: skip
def test_the_schema_refuses(rows: dict[str, Row], key: str, value: Any) -> None:
    row = copy.deepcopy(next(iter(rows.values())))
    row[key] = value
    assert not VALID.is_valid(row)


# ---------------------------------------------------------------------------------------------- submit
@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small comparison, one row of which cannot be."""
    folder = tmp_path_factory.mktemp("mine")
    budgets = dict(keep=0.5, flops=0.3, schedule=il.Schedule(llm={2: 0.5}))
    il.compare(il.load(), "fastv", **budgets, limit=12, timing=False, out=folder, progress=False)
    return folder


def test_submit_writes_what_was_measured(compared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # a second time it replaces its files
        assert main(["submit", str(compared), "--by", "someone", "--out", str(tmp_path)]) == 0
        out, err = capsys.readouterr()
        assert "Written: 3 files" in out and "rows that failed are left out: fastv FLOPs 0.3" in err
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert len(found) == 3 and all(name == file_name(row) for name, row in found.items())
    log = loglines.read(compared / "run.jsonl")
    assert log is not None
    for row in found.values():
        assert not [error.message for error in VALID.iter_errors(row)]
        measured = next(e for e in log.entries if e["row"].get("accuracy") is not None and e["row"]["strategy"] == row["method"]
                        and (row["budget"]["kind"] != "schedule" or e["row"]["schedule"] == row["budget"]["amount"]))  # fmt: skip
        assert row["accuracy"] == pytest.approx(measured["row"]["accuracy"], abs=1e-6)
        assert row["date"] == measured["measured"]["date"] and row["by"] == "someone"
        assert row["prefill_time"] is None and row["questions"] <= 12
    assert {row["budget"]["kind"] for row in found.values()} == {"keep", "schedule"}


def test_submit_refuses_what_is_no_comparison(compared: Path, tmp_path: Path) -> None:
    def changed(name: str, change) -> Path:
        lines = loglines.read(compared / "run.jsonl")
        assert lines is not None
        settings, entries = change(dict(lines.settings), copy.deepcopy(lines.entries))
        (tmp_path / name).mkdir()
        text = "".join([loglines.head(settings), *map(loglines.line, entries)])
        (tmp_path / name / "run.jsonl").write_text(text)
        return tmp_path / name

    def without(entries: list[Row], key: str) -> list[Row]:
        return [{name: value for name, value in entry.items() if name != key} for entry in entries]

    odd = {
        "holds no comparison: run.jsonl cannot be read": tmp_path,
        "holds no comparison: make one with": changed("bench", lambda s, e: ({"model": "x"}, e)),
        "has random weights": changed("random", lambda s, e: (s | {"model": "random:llava-1.5-7b"}, e)),
        "no finished row of the bare model": changed("bare", lambda s, e: (s, e[1:])),
        "asked about one picture only": changed(
            "one", lambda s, e: (s, [x | {"row": x["row"] | {"difference_low": None}} for x in e])
        ),
        "does not say when and where": changed("old", lambda s, e: (s, without(e, "measured"))),
        "holds rows that compare does not write (KeyError": changed(
            "odd", lambda s, e: ({"questions": 1, "model": "x"}, e)
        ),
    }
    for message, folder in odd.items():
        with pytest.raises(il.LabError, match=message.replace("(", r"\(")):
            submit(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(il.LabError, match="by must be a name of at most 100"):
        submit(compared, tmp_path / "out", by="\x1b[31m")
    (tmp_path / "file").write_text("")
    with pytest.raises(il.LabError, match="out: cannot write to"):
        submit(compared, tmp_path / "file")


def test_folders_of_whoever_measured_stay_out_of_the_file(compared: Path, tmp_path: Path) -> None:
    lines = loglines.read(compared / "run.jsonl")
    assert lines is not None
    for given, shown in {
        "/somewhere/secret/llava": "llava", str(tmp_path): tmp_path.name, "llava-hf/llava-1.5-7b-hf": "llava-hf/llava-1.5-7b-hf",
        "./mine/llava": "llava", "embedded": "embedded",
    }.items():  # fmt: skip
        settings = lines.settings | {"model": given, "task": "/somewhere/secret/task.parquet"}
        folder = tmp_path / "log"
        folder.mkdir(exist_ok=True)
        (folder / "run.jsonl").write_text("".join([loglines.head(settings), *map(loglines.line, lines.entries)]))
        files, _ = submit(folder, tmp_path / "out")
        row = json.loads(files[0].read_text())
        assert (row["model"], row["task"]) == (shown, "task") and "secret" not in files[0].read_text()


# ---------------------------------------------------------------------------------------------- the page
@pytest.fixture
def page(tmp_path: Path) -> Iterator[Any]:
    """The page's own part in a browser, without the theme around it."""
    if chromium() is None:
        pytest.skip("no browser")
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "leaderboard.js").write_bytes((CLONE / "docs" / "style" / "leaderboard.js").read_bytes())
    (tmp_path / "_static" / "markers.js").write_text(front.markers(), encoding="utf-8")
    board.copy_rows(tmp_path)
    parts = [part.removeprefix("```{raw} html\n").removesuffix("```") for part in (board.board(), board.reported())]
    # On the site the heading above has the name of the board, too.
    page = f'<!doctype html><meta charset=utf-8><section id="leaderboard">{parts[0]}</section>{parts[1]}'
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with launched() as browser:
        opened = browser.new_page()
        errors: list[str] = []
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.goto((tmp_path / "page.html").as_uri())
        yield opened
        assert not errors


@pytest.mark.browser
def test_the_page_filters_sorts_draws_and_leads_to_each_file(page: Any, rows: dict[str, Row]) -> None:
    shown = page.locator("#leaderboard tbody tr:visible")
    points = page.locator("#leaderboard svg a")
    assert shown.count() == points.count() == len(rows)
    assert page.locator(".count").inner_text() == f"{len(rows)} of {len(rows)} rows"
    drawn = page.locator("#leaderboard svg a path").all()
    assert {dot.get_attribute("fill") for dot in drawn} == {
        each.color for each in looks(sorted({row["method"] for row in rows.values()})).values()
    }

    page.get_by_label("method").select_option("illava")
    wanted = [row for row in rows.values() if row["method"] in ("illava", "none")]
    assert shown.count() == points.count() == len(wanted), "the bare model stays, to compare with"
    page.get_by_label("across").select_option("time")
    timed = sum(row["prefill_time"] is not None for row in wanted)
    assert 0 < points.count() == timed < len(wanted), "what was not timed is not drawn"

    def column(key: str) -> list[str]:
        return page.evaluate(
            """key => [...document.querySelectorAll("#leaderboard tbody tr")].filter(row => !row.hidden).map(row =>
               row.cells[[...document.querySelectorAll("#leaderboard th")].findIndex(head => head.dataset.key === key)]
               .dataset.value)""", key
        )  # fmt: skip

    def sort(name: str) -> None:
        page.get_by_role("button", name=name).click()

    sort("accuracy %")
    assert [float(x) for x in column("accuracy")] == sorted(row["accuracy"] for row in wanted)
    sort("accuracy %")
    assert page.locator('th[aria-sort="descending"]').inner_text() == "accuracy %"
    assert [float(x) for x in column("accuracy")] == sorted((row["accuracy"] for row in wanted), reverse=True)
    sort("prefill time")
    times = column("time")
    assert [float(x) for x in times[:timed]] == sorted(map(float, times[:timed])) and set(times[timed:]) == {""}

    points.first.click()
    assert page.url.split("#")[1].removeprefix("row-") + ".json" in rows
    page.get_by_role("button", name="show all").click()
    page.wait_for_function(f"document.querySelector('.count').textContent === '{len(rows)} of {len(rows)} rows'")
    shown.first.get_by_role("link", name="JSON").click()
    assert json.loads(page.locator("body").inner_text()) in rows.values()
    page.go_back()
    assert page.locator("#reported tbody tr", has_text="theirs").count() > 100
