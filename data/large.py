"""One large picture with small things, which only its crops show: 128 x 128 pixels, sixteen cells.

Each quarter holds at most one word, one digit and one shape. At the size of the whole view, which is half of it, words
cannot be read.
"""

from __future__ import annotations

import numpy as np
from questions import Question, evenly
from scenes import COLORS, SHAPES, Canvas, Item, Scene, make_ground, make_item, pick

CANVAS = Canvas(128, 4)
SIDES = (15, 23)
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
CATEGORIES = ("word", "digit", "color", "shape", "where", "count")
WORDINGS = {
    "word": ("What word is at the {0}?", "Which word is at the {0}?", "Read the word at the {0}."),
    "digit": ("What digit is at the {0}?", "Which digit is at the {0}?"),
    "color": ("What color is the shape at the {0}?", "Which color is the shape at the {0}?"),
    "shape": ("What shape is at the {0}?", "Which shape is at the {0}?"),
    "where": ("Where is the {0}?",),
    "count": ("How many {0} are there?", "Count the {0}."),
}


def make_scene(rng: np.random.Generator, split: str, crowded: bool = False) -> Scene:
    """`crowded` fills all sixteen cells with anything: more to learn from when only the vision tower is trained."""
    items = []
    share = rng.uniform(0.4, 1, 3)
    for quarter in range(4):
        kinds = [kind for kind, s in zip(("word", "digit", "shape"), share, strict=True) if rng.random() < s]
        if crowded:
            kinds = [str(kind) for kind in rng.choice(("word", "digit", "shape"), size=4, p=(0.35, 0.3, 0.35))]
        for number, kind in zip(rng.permutation(4), kinds, strict=False):
            cell = (2 * (quarter // 2) + int(number) // 2) * 4 + 2 * (quarter % 2) + int(number) % 2
            name = pick(rng, SHAPES) if kind == "shape" else kind
            items.append(make_item(rng, split, cell, name, pick(rng, tuple(COLORS)), CANVAS, SIDES))
    return Scene(tuple(items), make_ground(rng, split, CANVAS.side))


def quarter_of(item: Item) -> str:
    return QUARTERS[2 * (item.cell // 8) + item.cell % 4 // 2]


def possible(scene: Scene) -> dict[str, list[tuple[str, str]]]:
    """Everything that can be asked without ambiguity: (words of the question, answer) by category."""
    asks: dict[str, list[tuple[str, str]]] = {category: [] for category in CATEGORIES}
    names = [called(item) for item in scene.items]
    for item in scene.items:
        if item.kind in ("word", "digit"):
            asks[item.kind].append((quarter_of(item), item.value))
        else:
            asks["color"].append((quarter_of(item), item.value))
            asks["shape"].append((quarter_of(item), item.kind))
        if names.count(called(item)) == 1:
            asks["where"].append((called(item), quarter_of(item)))
    asks["count"] = [(f"{kind}s", str(sum(i.kind == kind for i in scene.items))) for kind in ("word", "digit")]
    asks["count"] += [("shapes", str(len(scene.shapes)))]
    return asks


def called(item: Item) -> str:
    return f"{item.kind} {item.value}" if item.kind in ("word", "digit") else item.name


def ask(scene: Scene, rng: np.random.Generator, category: str) -> Question | None:
    """One question of this category, or None where the picture has none."""
    options = possible(scene)[category]
    if not options:
        return None
    words, answer = evenly(rng, options)
    return Question(pick(rng, WORDINGS[category]).format(words), answer, category)
