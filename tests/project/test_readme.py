"""What the README shows is short and true: its figures are those of the files, its first answers are given."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from illava_lab.__main__ import main
from illava_lab.models import families

CLONE = Path(__file__).resolve().parents[2]
README = (CLONE / "README.md").read_text(encoding="utf-8")
RESULT = CLONE / "results" / "embedded"
SAMPLES = pd.read_csv(CLONE / "data" / "samples" / "questions.csv", dtype=str)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 160


def test_its_result_is_that_of_the_committed_file() -> None:
    stored = [line.rstrip() for line in (RESULT / "summary.txt").read_text(encoding="utf-8").splitlines()]
    (shown,) = blocks("text")
    assert len(shown.splitlines()) >= 4 and set(shown.splitlines()) <= set(stored)
    section = README.partition("## One result\n")[2].partition("\n## ")[0]
    questions = json.loads((RESULT / "about.json").read_text(encoding="utf-8"))["questions"]
    assert f"{questions:,} questions" in section
    figures = re.findall(r"\d+\.\d+", section.replace(shown, ""))
    assert not figures, f"{figures} are in no file; show a line of results/embedded/summary.txt in their place"


def test_its_first_question_gets_the_answer_that_it_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CLONE)
    (command,) = (line for block in blocks("sh") for line in block.splitlines() if line.startswith("illava-lab ask"))
    words = shlex.split(command)[1:]
    (row,) = SAMPLES[(SAMPLES.picture == Path(words[1]).name) & (SAMPLES.question == words[2])].itertuples()
    assert f"It prints `{row.answer}`" in README
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[0] == row.answer


def test_its_first_python_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks("python")[0]
    exec(compile(code, "README.md", "exec"), {})
    (promised,) = re.findall(r"print\(answer\.text\)  # (\w+)", code)
    assert capsys.readouterr().out.splitlines()[0] == promised


def test_it_names_every_supported_family() -> None:
    for family in families.FAMILIES.values():
        assert re.search(rf"{re.escape(family.name)}\b", README), f"README.md leaves out {family.name}"
