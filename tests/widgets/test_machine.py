"""The machine's kernel side: what the page asks for comes back, once, in order, or with the reason why not."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import illava_lab as il
from illava_lab.views.moves import states
from illava_lab.views.run import run_of
from illava_lab.widgets import Machine, front
from illava_lab.widgets import machine as module

CLONE = Path(__file__).resolve().parents[2]
SAMPLES = il.data_dir() / "samples"
COLOR, STARS, DIGIT = "What color is the circle?", "How many stars are there?", "What digit is shown?"


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(scope="module")
def machine(lab: il.Lab) -> Machine:
    pictures = {"shapes": SAMPLES / "shapes.png", "digit": SAMPLES / "digit.png"}
    return Machine(lab, pictures, {"shapes": [COLOR, STARS], "digit": DIGIT}, keep=0.3)


def ask(machine: Machine, quiet: bool = False, **settings: Any) -> dict[str, Any]:
    """What the page does: settings with a number go to the kernel, the answer has the number."""
    asked = {**machine._figure.start, **settings}
    ask.number = getattr(ask, "number", 0) + 1  # type: ignore[attr-defined]
    machine._figure.asked = {**asked, "id": ask.number, "quiet": quiet}  # type: ignore[attr-defined]
    answer = machine._figure.answer
    assert answer["id"] == ask.number and answer["settings"] == asked  # type: ignore[attr-defined]
    json.dumps(answer, allow_nan=False)
    return answer


def test_what_the_page_asks_for(machine: Machine, lab: il.Lab) -> None:
    run = ask(machine, picture=1, question=DIGIT, method="tome", keep=0.2)["run"]
    want = run_of(lab, SAMPLES / "digit.png", DIGIT, "tome", 0.2)
    views = want.pop("views")
    assert run == want, "the pictures are in the catalogue, once"
    assert machine._figure.catalog["pictures"][1]["views"] == views
    assert machine.settings == {
        "picture": "digit", "question": DIGIT, "strategy": "tome", "keep": 0.2, "schedule": None,
    }  # fmt: skip
    assert machine.run["views"] == views
    # A handle: fractions of what enters each layer, as the page computes them.
    moved = {"image": None, "encoder": {"2": 0.5, "5": 0.75}, "llm": {"3": 0.5}}
    counts = ask(machine, schedule=moved)["run"]["layers"]["tokens"]
    entered, want = counts[0], np.array([1, 0.5, 0.5 * 0.75, 0.5 * 0.75 * 0.5])
    assert np.abs(np.array([counts[1 + 1], counts[1 + 2], counts[1 + 5], counts[-2]]) - want * entered).max() <= 1
    assert machine.settings["schedule"] == il.Schedule(encoder={2: 0.5, 5: 0.75}, llm={3: 0.5})
    smaller = ask(machine, method="downsample", schedule={"image": 0.3, "encoder": {}, "llm": {}})
    assert smaller["run"]["layers"]["tokens"][0] == pytest.approx(0.3 * entered, rel=0.1), "the nearest grid there is"


def test_what_cannot_be_is_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = machine.settings
    too_few = {"image": None, "encoder": {"2": 0.2}, "llm": {}}
    assert "tome can merge at most" in ask(machine, method="tome", schedule=too_few)["error"]
    assert "question must be a sentence" in ask(machine, question=" ")["error"]
    monkeypatch.setattr(module, "run_of", lambda *_, **__: 1 / 0)
    assert ask(machine, question="Why?")["error"] == "ZeroDivisionError: division by zero"
    assert machine.settings == shown, "and nothing else is shown"


def test_a_run_is_computed_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ask(machine, method="fastv", keep=0.4)["run"]
    shown = machine.settings
    monkeypatch.setattr(module, "run_of", lambda *_, **__: pytest.fail("computed again"))
    assert ask(machine, method="fastv", keep=0.4, quiet=True)["run"] == first
    assert machine.settings == shown, "what nobody waits for is not shown"


def test_a_notebook_moves_it(machine: Machine) -> None:
    machine.set(picture="shapes", strategy="illava", keep=0.2)
    assert machine.settings["question"] == COLOR and machine._figure.answer["told"]
    counts = machine.run["layers"]["tokens"]
    assert counts[-2] == round(0.2 * counts[0])
    machine.set(question="How many red xyzzys are there?")
    assert "xyzzys" in machine.run["note"]
    for wrong, says in [
        ({"picture": "photo"}, "picture must be one of 'shapes', 'digit'"),
        ({"strategy": "dart"}, "strategy must be one of"),
        ({"keep": 0}, "keep must be a fraction"),
    ]:
        with pytest.raises(il.LabError, match=says):
            machine.set(**wrong)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"lab": None}, "lab must be a Lab"),
        ({"image": {}}, "image must name at least one image"),
        ({"image": []}, "image must show at least one image"),
        ({"question": ""}, "question must be a sentence"),
        ({"question": []}, "question must hold at least one"),
        ({"question": {"photo": COLOR}}, "question must have the names of the images, picture; got photo"),
        ({"strategy": "tom"}, "tome"),
        ({"strategies": ["tome", "tome"]}, "strategies holds one twice"),
        ({"keep": 2}, "keep must be a fraction"),
        ({"keeps": [0.5, 0]}, "keeps must be a fraction"),
    ],
)
def test_refusals(lab: il.Lab, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], says: str) -> None:
    monkeypatch.setattr(type(lab.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    given = {"lab": lab, "image": SAMPLES / "shapes.png", "question": COLOR, **arguments}
    with pytest.raises(il.LabError, match=says):
        Machine(**given)


# --------------------------------------------------------------------------------------------- what is stored
def test_the_runs_of_the_site_are_those_of_the_model(lab: il.Lab) -> None:
    docs = runpy.run_path(str(CLONE / "docs" / "machine_runs.py"))
    text = docs["FILE"].read_text(encoding="utf-8")
    stored = json.loads(text)
    assert len(text.encode()) < 1_000_000
    made_again = "python docs/machine_runs.py makes them again"
    assert stored["model"] == docs["model_digest"](), made_again
    wanted = docs["wanted"](lab)
    assert [{name: run[name] for name in wanted[0]} for run in stored["runs"]] == wanted, made_again
    one = next(run for run in stored["runs"] if run["method"] == "illava" and run["keep"] == 0.3)
    again = run_of(lab, SAMPLES / "shapes.png", one["question"], "illava", 0.3)
    layers, moves = stored["parts"][one["run"]["layers"]], [stored["parts"][move] for move in one["run"]["moves"]]
    assert layers["tokens"] == again["layers"]["tokens"], made_again
    # Another processor may take another one of two tokens that are nearly alike.
    kept, now = (set(states({**again, "moves": each})[-1].anchor) for each in (moves, again["moves"]))
    assert len(kept & now) > 0.9 * len(kept), made_again
    (word, odds), (word_now, odds_now) = (run["answer"]["words"][0][0] for run in (one["run"], again))
    assert odds_now == pytest.approx(odds, abs=0.05) and (word == word_now or odds < 0.55), made_again


def test_the_front_end_needs_nothing_from_elsewhere() -> None:
    files = sorted(front.FOLDER.glob("*.js"))
    assert {file.stem for file in files} == {name for parts in front.PARTS.values() for name in parts}
    for parts in front.PARTS.values():
        for number, name in enumerate(parts):
            code = (front.FOLDER / f"{name}.js").read_text(encoding="utf-8")
            assert code.count("\n") <= 300, f"{name}.js is longer than a module may be"
            used = re.findall(r'^import [^;]* from "\./(\w+)\.js";', code, re.MULTILINE)
            assert set(used) <= set(parts[:number]), f"{name}.js uses what comes behind it"
    whole = "".join(front.script(figure) + front.style(figure) for figure in front.PARTS)
    assert not re.search(r"^\s*(import|export (?!default))\b", whole, re.MULTILINE)
    assert set(re.findall(r"\b(?:https?:)?//[\w.]+\.\w+", re.sub(r"^\s*//.*|/\*.*?\*/", "", whole, flags=re.M))) <= {
        "http://www.w3.org"  # the name of SVG, which nobody fetches
    }
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|import)\s*\(|@import|url\(", whole)
