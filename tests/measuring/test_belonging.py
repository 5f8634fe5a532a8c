"""A row belongs to the code that computed it: a resumed comparison measures again what changed, and nothing else."""

from __future__ import annotations

import collections
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import changing
from torch import Tensor

import illava_lab as il
from illava_lab.measuring import own_code
from illava_lab.measuring.digest import digest

TESTS = Path(changing.__file__).parents[1]


def run(folder: Path, out: Path, seed: int) -> tuple[str, dict[str, str]]:
    """Compare in a process of its own; what it says on stderr, and the digest of each strategy before it runs."""
    env = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "helpers.changing", str(folder), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stderr, json.loads(done.stdout)


def lines(out: Path) -> dict[str, str]:
    """strategy -> its line in the log, which holds all its figures."""
    entries = (out / "run.jsonl").read_text().splitlines()[1:]
    assert all(json.loads(line)["row"]["status"] == "ok" for line in entries)
    return {json.loads(line)["row"]["strategy"]: line for line in entries}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_kind_of_change_is_noticed_and_nothing_else(tmp_path: Path) -> None:
    folder, out = tmp_path / "code", tmp_path / "out"
    for kind in changing.KINDS:
        changing.write(kind, folder, 1)
    said, digests = run(folder, out, seed=1)
    first = lines(out)
    assert said == "" and len(first) == 1 + len(changing.MEASURED) and len(digests) == len(changing.KINDS)

    for kind in changing.KINDS:
        changing.write(kind, folder, 1, beside=True)
    assert run(folder, out, seed=2) == ("", digests), "comments, docstrings, places and unrelated code do not matter"
    assert lines(out) == first

    for kind in changing.KINDS:
        changing.write(kind, folder, -1, beside=True)
    said, others = run(folder, out, seed=3)
    assert [name for name in digests if others[name] == digests[name]] == []
    second = lines(out)
    kept = [name for name in first if first[name] == second[name]]
    assert kept == ["none"]
    assert said.startswith("measured again, as the code changed since: t-") and said.count("\n") == 1


# ---------------------------------------------------------------------------------------------- in one process
@pytest.fixture(scope="module")
def lab() -> Iterator[il.Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield il.load()
    torch.set_num_threads(threads)


TASK = il.load_task("test").limited(1)


def compared(lab: il.Lab, out: Path, *strategies: Any, keep: float | list[float] = 0.5) -> list[str]:
    """Compare, and say which rows were measured again."""
    table = il.compare(lab, list(strategies), keep, task=TASK, timing=False, out=out, progress=False)
    assert set(table["status"]) == {"ok"}
    return table.attrs.get("measured again", [])


def test_an_edited_file_counts_when_it_is_loaded(lab: il.Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when it is saved: a running session goes on with what it has loaded."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    out = tmp_path / "out"
    changing.write("module", tmp_path, 1)
    mine, parts = importlib.import_module("strategy_t_module"), importlib.import_module("parts_t_module")
    compared(lab, out, mine.Mine)
    first = lines(out)
    changing.write("module", tmp_path, -1)
    assert compared(lab, out, mine.Mine) == [] and lines(out) == first, "nothing was measured, nothing is renamed"
    importlib.reload(parts)
    assert compared(lab, out, mine.Mine) == ["t-module keep 0.5"]
    assert lines(out)["t-module"] != first["t-module"] and lines(out)["none"] == first["none"]


def cell(factor: str, before: str = "") -> str:
    body = f"        return {factor} * tokens.hidden.norm(dim=-1)\n"
    return f"{before}\n@il.register\nclass Mine(il.Scorer):\n    name = 't-cell'\n    def score(self, tokens):\n{body}"


def test_a_cell_that_runs_again_is_no_change_and_a_changed_one_is(lab: il.Lab, tmp_path: Path) -> None:
    notebook: dict[str, Any] = {"il": il, "torch": torch, "__name__": "__main__", "FACTOR": 1, "elsewhere": 1}

    def again(text: str) -> list[str]:
        exec(compile(text, f"<cell {len(text)}>", "exec"), notebook)
        return compared(lab, tmp_path / "out", "t-cell")

    assert again(cell("FACTOR")) == []
    for same in (cell("FACTOR"), cell("FACTOR", "# why\n\n"), "elsewhere = 2", "image = object()"):
        assert again(same) == [], same
    changes = (
        "FACTOR = -1", cell("helper()", "def helper(): return FACTOR"), "def helper(): return abs(FACTOR)",
        "Mine.score = lambda self, tokens: FACTOR - tokens.hidden.norm(dim=-1)", "Mine.layers = lambda self, stage, depth: [1]",
    )  # fmt: skip
    for changed in changes:
        assert again(changed) == ["t-cell keep 0.5"], changed
        assert again("elsewhere = 3") == []


def test_what_a_strategy_notes_down_while_it_runs_is_no_change(lab: il.Lab, tmp_path: Path) -> None:
    seen: list[Any] = []
    cache: dict[Any, Any] = {}

    class Notes(il.Scorer):
        name = "t-notes"
        calls = 0

        def score(self, tokens: il.Tokens) -> Tensor:
            type(self).calls += 1
            seen.append(tokens.layer)
            return cache.setdefault(len(cache), tokens.hidden.norm(dim=-1))

    class AlsoNotes(Notes):
        name = "t-also-notes"

    for _ in range(2):
        assert compared(lab, tmp_path, Notes, AlsoNotes, keep=[0.7, 0.5]) == []
    size = len(seen)
    assert compared(lab, tmp_path, Notes, AlsoNotes, keep=[0.7, 0.5]) == [] and len(seen) == size
    cache["by hand"] = 3
    assert len(compared(lab, tmp_path, Notes, AlsoNotes, keep=[0.7, 0.5])) == 4


def test_a_change_is_said_once_on_stderr_and_under_the_table(
    lab: il.Lab, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = functools.partial(il.compare, lab, ["random", "fastv"], [0.5, 0.3], task=TASK, timing=False, out=tmp_path)
    said = "measured again, as the code changed since: fastv keep 0.5, fastv keep 0.3"
    call(progress=False)
    assert said not in il.summary(call(progress=False)) and capsys.readouterr().err == ""
    monkeypatch.setattr(il.get_strategy("fastv"), "score", lambda self, tokens: tokens.hidden.norm(dim=-1))
    assert il.summary(call(progress=False)).splitlines()[-1] == said
    assert capsys.readouterr().err == said + "\n"


def test_bench_and_fidelity_measure_changed_rows_again(
    lab: il.Lab, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = TASK.image(TASK.samples["image_id"].iloc[0])

    def both() -> dict[str, list[str]]:
        il.bench(lab, "random", rounds=1, new_tokens=1, out=tmp_path / "bench", progress=False)
        il.fidelity(lab, [picture] * 2, ["What?", "Where?"], "random", out=tmp_path / "fidelity", progress=False)
        return {name: (tmp_path / name / "run.jsonl").read_text().splitlines() for name in ("bench", "fidelity")}

    first = both()
    assert both() == first and capsys.readouterr().err == ""
    monkeypatch.setattr(il.get_strategy("random"), "score", lambda self, tokens: tokens.hidden.norm(dim=-1))
    second = both()
    assert capsys.readouterr().err == "measured again, as the code changed since: random keep 0.5\n" * 2
    for name in first:
        old, new = ({json.loads(line).get("label"): line for line in lines[name]} for lines in (first, second))
        assert old.keys() == new.keys()
        assert all((old[label] != new[label]) is str(label).startswith("random") for label in old)
        table = (tmp_path / name / "table.csv").read_text()
        assert table.count("\n") == (4 if name == "bench" else 3)


# ---------------------------------------------------------------------------------------------- values
VALUES: list[tuple[Any, Any]] = [
    (1, True), (0.0, -0.0), (1, 1.0), ("a", b"a"), ((1, 2), [1, 2]), ({"a": 1, "b": 2}, {"a": 2, "b": 1}), ({1, 2}, {1, 3}),
    (re.compile("a"), re.compile("b")), (Path("a"), Path("b")), (range(3), range(4)), (slice(1), slice(2)),
    (collections.Counter("aab"), collections.Counter("ab")), (collections.deque([1]), collections.deque([2])),
    (torch.float32, torch.float16), (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
    (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)), (torch.zeros(2, 3), torch.zeros(3, 2)),
    (np.arange(2000), np.arange(2000)[::-1]), (np.array([{}, 1]), np.array([{}, 2])),
    (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)), (np.random.default_rng(1), np.random.default_rng(2)),
    (torch.nn.functional.relu, torch.nn.functional.gelu), (torch.nn.ReLU(), torch.nn.GELU()), (torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)),
    (functools.partial(max, 1), functools.partial(max, 2)), (il.Schedule(llm={2: 0.5}), il.Schedule(llm={2: 0.4})),
    (lambda: {1, 2, "a"}, lambda: {1, 2, "b"}), (lambda x: x + 1, lambda x: x - 1), (lambda a, b: a, lambda b, a: a), (lambda x=1: x, lambda x=2: x),
    (torch.compile(lambda x: x * 2), torch.compile(lambda x: x * 3)),
]  # fmt: skip


@pytest.mark.parametrize("pair", VALUES, ids=range(len(VALUES)))
def test_values_that_differ_are_told_apart(pair: tuple[Any, Any]) -> None:
    first, second = pair
    assert digest(first) == digest(first) != digest(second)


def test_values_that_cannot_be_looked_at_fail_nothing() -> None:
    class Odd:
        def __getattribute__(self, name: str) -> Any:
            raise RuntimeError(name)

    loop: list[Any] = []
    loop.append(loop)
    deep: Any = ()
    for _ in range(5000):
        deep = (deep,)
    for value in (Odd(), loop, deep, threading.Lock(), (i for i in "a"), sys.stdout, sys, Ellipsis, "\ud800", object()):
        assert digest(value) == digest(value)


# ---------------------------------------------------------------------------------------------- the lab itself
def test_the_own_code_is_that_of_the_files_as_they_were_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, edited = own_code._read()
    assert (
        not edited
        and texts == own_code._TEXTS
        and {"hooks/attach.py", "sites/sums.py", own_code.BASELINE} <= set(texts)
    )
    now = own_code.own_code()

    def of(text: bytes) -> str:
        own_code.own_code.cache_clear()
        monkeypatch.setattr(own_code, "_TEXTS", {**texts, "hooks/attach.py": text})
        return own_code.own_code()

    text = texts["hooks/attach.py"]
    assert of(b"# a comment\n\n" + text) == now != of(text + b"\nNEW = 1\n")
    monkeypatch.setattr(il, "_loaded_at", 0.0)  # as if every file had been edited since
    assert own_code._read()[1]
    monkeypatch.setattr(own_code, "_EDITED", True)
    assert of(text) != of(text) and len(of(text)) == 32
    monkeypatch.undo()
    own_code.own_code.cache_clear()
