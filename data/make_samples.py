"""Draw the sample pictures and write their questions: python make_samples.py

Three scenes of the kind that the embedded model was trained on, laid out by hand, on photographs and with a handwritten
digit that it never saw in training. Questions and answers follow from the layout; no picture is in a question file.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from questions import WORDINGS, Question, possible
from scenes import Ground, Scene, draw, make_item

SPLIT = "test"  # whose photographs and digits training never draws
FOLDER = Path(__file__).with_name("samples")


class Sample(NamedTuple):
    """One picture.

    Attributes:
        seed: of sizes, places within a cell, tints, and which digit and word it is.
        photo: a photograph of the split; crop: left, top, right and bottom in it.
        items: kind, color (of a shape) and cell, 0 to 8 row by row.
        asked: category of each question, and the object it is about, as `scenes.possible` names it.
    """

    seed: int
    photo: str
    crop: tuple[float, float, float, float]
    items: tuple[tuple[str, str, int], ...]
    asked: tuple[tuple[str, str], ...]


SAMPLES = {
    "shapes": Sample(
        1, "coffee.png", (60, 20, 440, 400),
        (("circle", "red", 0), ("star", "yellow", 2), ("square", "blue", 4), ("triangle", "green", 6),
         ("star", "white", 8)),
        (("color", "circle"), ("place", "blue square"), ("count", "squares"), ("shape", "green"),
         ("relation", "Is the red circle above or below the green triangle?")),
    ),
    "digit": Sample(
        2, "camera.png", (40, 60, 440, 460),
        (("digit", "", 4), ("ring", "purple", 1), ("cross", "yellow", 3), ("circle", "white", 8)),
        (("digit", ""), ("place", "digit"), ("color", "ring"), ("shape", "yellow")),
    ),
    "word": Sample(
        3, "coffee.png", (180, 0, 560, 380),
        (("word", "", 3), ("triangle", "red", 1), ("square", "green", 5), ("square", "purple", 7)),
        (("word", ""), ("place", "word"), ("count", "squares"), ("color", "triangle")),
    ),
}  # fmt: skip


def scene(sample: Sample) -> Scene:
    """What a sample shows, and where."""
    rng = np.random.default_rng(sample.seed)
    items = [make_item(rng, SPLIT, cell, kind, color) for kind, color, cell in sample.items]
    return Scene(tuple(items), Ground(sample.photo, sample.crop, flip=False, tone=(0.6, 130.0)))


def questions(sample: Sample) -> list[Question]:
    """The questions about a sample, in the wording that stands first in `scenes.WORDINGS`."""
    asked = []
    for category, subject in sample.asked:
        (answer,) = [a for about, a in possible(scene(sample), np.random.default_rng(0))[category] if about == subject]
        text = subject if category == "relation" else WORDINGS[category][0].format(subject)
        asked.append(Question(text, answer, category))
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER)
    out: Path = parser.parse_args().out
    out.mkdir(exist_ok=True)
    with (out / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("picture", "question", "answer"))
        for name, sample in SAMPLES.items():
            draw(scene(sample)).save(out / f"{name}.png", optimize=True)
            table.writerows((f"{name}.png", question.text, question.answer) for question in questions(sample))


if __name__ == "__main__":
    main()
