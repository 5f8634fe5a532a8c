"""A chapter can be read in one sitting: the words outside its folded hints and solutions are counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.chapters import NOTEBOOKS, read

WORDS = 1800  # of a chapter, with the bars and dashes of its tables: they take room on the page, too


def words(markdown: str) -> list[str]:
    """What a reader meets: everything between spaces, without what is folded and without tags.

    A tag starts with a letter, so that "< 1 s" in a table is none; it counts as "2 s" does, since times change by themselves.
    """
    unfolded = re.sub(r"<details>.*?</details>", " ", markdown, flags=re.DOTALL).replace("< 1 s", "1 s")
    return re.sub(r"</?[a-zA-Z][^<>]*>", "", unfolded).split()


def test_what_is_folded_and_tags_are_no_words() -> None:
    text = "Two words.\n<details><summary>Hint 1</summary>\n\nFolded.\n</details>\n<details>\nToo.\n</details>\n| < 1 s | s<sub>j</sub> |"
    assert words(text) == ["Two", "words.", "|", "1", "s", "|", "sj", "|"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_is_not_too_long(path: Path) -> None:
    text = "\n\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    count = len(words(text))
    assert count <= WORDS, f"{path.stem} has {count:,} words outside hints and solutions, at most {WORDS:,} are allowed"
