"""The walk names files and functions that are there, each file once, in few steps."""

from __future__ import annotations

import ast
import re
from pathlib import Path

CLONE = Path(__file__).resolve().parents[2]


def test_the_walk_names_at_most_twelve_files_once_each_and_what_is_in_them() -> None:
    text = (CLONE / "docs" / "walk.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \| `([^`]+)` \| (.+) \|$", text, re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, len(rows) + 1)) and 8 <= len(rows) <= 12
    files = re.findall(r"`([\w/]+\.py)`", text)
    assert files == [file for _, file, *_ in rows], "a file is named twice, or outside the table"
    for _, file, name, sentence in rows:
        tree = ast.walk(ast.parse((CLONE / file).read_text(encoding="utf-8")))
        assert name in {node.name for node in tree if isinstance(node, ast.FunctionDef)}, f"{file} has no {name}"
        assert len(sentence) < 150, f"the sentence about {file} is long"
    diagram = text.partition("```text\n")[2].partition("```")[0]
    assert {int(number) for number in re.findall(r"\b\d+\b", diagram)} == set(range(1, len(rows) + 1))
