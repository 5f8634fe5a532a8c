"""Questions about one scene, each with one right answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scenes import CATEGORIES, COLORS, PLACES, PLURALS, SHAPES, Scene, pick


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    category: str


WORDINGS = {
    "color": ("What color is the {0}?",) * 3 + ("What is the color of the {0}?", "Which color is the {0}?",
                                               "What colour is the {0}?", "What is the colour of the {0}?"),
    "shape": ("What shape is {0}?", "What shape is the {0} object?", "Which shape is {0}?"),
    "place": ("Where is the {0}?", "Where is the {0} in the image?"),
    "count": ("How many {0} are there?", "How many {0} are in the image?", "Count the {0}."),
    "digit": ("What digit is shown?", "Which digit is shown?", "What is the digit?", "What number is shown?"),
    "exists": ("Is there a {0}?", "Is there a {0} in the image?"),
    "word": ("What word is written?", "What does the word say?", "What is the word?", "Read the word."),
}  # fmt: skip


def possible(scene: Scene, rng: np.random.Generator) -> dict[str, list[tuple[str, str]]]:
    """Everything that can be asked without ambiguity: (object of the question, answer) by category."""
    shapes = scene.shapes
    kinds, colors = [s.kind for s in shapes], [s.value for s in shapes]
    present = {(s.kind, s.value) for s in shapes}
    asks: dict[str, list[tuple[str, str]]] = {category: [] for category in CATEGORIES}
    asks["color"] = [(s.kind, s.value) for s in shapes if kinds.count(s.kind) == 1]
    asks["shape"] = [(s.value, s.kind) for s in shapes if colors.count(s.value) == 1]
    asks["place"] = [(item.name, PLACES[item.cell]) for item in scene.items]
    asks["count"] = [(PLURALS[k], str(kinds.count(k))) for k in SHAPES]
    asks["count"] += [(f"{c} shapes", str(colors.count(c))) for c in COLORS] + [("shapes", str(len(shapes)))] * 3
    asks["digit"] = [("", i.value) for i in scene.items if i.kind == "digit"]
    asks["word"] = [("", i.value) for i in scene.items if i.kind == "word"]
    # A "no" is hard: its color and its shape are both there, only not on one object.
    absent = [f"{c} {k}" for k in sorted(set(kinds)) for c in sorted(set(colors)) if (k, c) not in present]
    yes = rng.random() < 0.5
    asks["exists"] = [(s.name, "yes") for s in shapes] if yes else [(name, "no") for name in absent]
    for a in shapes:
        for b in shapes:
            across, down = a.cell % 3 - b.cell % 3, a.cell // 3 - b.cell // 3
            if across:
                text = f"Is the {a.name} left or right of the {b.name}?"
                asks["relation"].append((text, "left" if across < 0 else "right"))
            if down:
                text = f"Is the {a.name} above or below the {b.name}?"
                asks["relation"].append((text, "above" if down < 0 else "below"))
    return asks


def ask(scene: Scene, rng: np.random.Generator, category: str) -> Question | None:
    """One question of this category, or None where the scene has none."""
    options = possible(scene, rng)[category]
    if not options:
        return None
    subject, answer = evenly(rng, options)
    text = subject if category == "relation" else pick(rng, WORDINGS[category]).format(subject)
    return Question(text, answer, category)


def evenly(rng: np.random.Generator, options: list[tuple[str, str]]) -> tuple[str, str]:
    """One of these (subject, answer). Rare answers are asked for as often as frequent ones, so that a model cannot live
    off "How many ...? 1"."""
    answer = pick(rng, sorted({a for _, a in options}))
    return pick(rng, [option for option in options if option[1] == answer])


def questions(scene: Scene, rng: np.random.Generator, categories: tuple[str, ...] = CATEGORIES) -> list[Question]:
    """One question of each of these categories that the scene allows."""
    asked = (ask(scene, rng, category) for category in categories)
    return [question for question in asked if question is not None]
