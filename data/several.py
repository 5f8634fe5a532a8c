"""Several small pictures in one prompt, and questions that no single one of them answers.

Two to four pictures of 64 x 64 pixels, each with one to three objects in four cells. The prompt numbers them
("Picture 1: ..."), and so do the questions.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from questions import Question, evenly
from scenes import COLORS, SHAPES, Canvas, Item, Scene, make_ground, make_item, pick

CANVAS = Canvas(64, 2)
SIDES = (18, 27)
CATEGORIES = ("which", "count", "same", "only", "word", "digit", "color", "order")
WORDINGS = {
    "which": ("Which picture shows the {0}?", "In which picture is the {0}?"),
    "count": ("How many pictures show {0}?", "In how many pictures is {0}?"),
    "same": ("Do {0} show the same {1}?",),
    "only": ("Which shape is only in picture {0}?", "What shape is only in picture {0}?"),
    "word": ("What word is in picture {0}?", "Which word is in picture {0}?"),
    "digit": ("What digit is in picture {0}?", "Which digit is in picture {0}?"),
    "color": ("What color is the {0} in picture {1}?", "Which color is the {0} in picture {1}?"),
    "order": ("Which comes first, the {0} or the {1}?",),
}


def make_pictures(rng: np.random.Generator, split: str, count: int) -> tuple[Scene, ...]:
    """`count` pictures whose shapes, words and digits repeat often enough to be compared."""
    kinds = [pick(rng, SHAPES) for _ in range(4)]
    colors = [pick(rng, tuple(COLORS)) for _ in range(4)]
    values: dict[str, list[str]] = {"digit": [], "word": []}
    return tuple(make_picture(rng, split, kinds, colors, values) for _ in range(count))


def make_picture(
    rng: np.random.Generator, split: str, kinds: list[str], colors: list[str], values: dict[str, list[str]]
) -> Scene:
    pairs: list[tuple[str, str]] = []
    for _ in range(int(rng.integers(1, 4))):
        pair = (pick(rng, kinds), pick(rng, colors))
        if pair[0] not in [kind for kind, _ in pairs]:
            pairs.append(pair)
    pairs += [(kind, "") for kind in ("digit", "word") if rng.random() < 0.55]
    pairs = [pairs[i] for i in rng.permutation(len(pairs))[:3]]
    items = []
    for cell, (kind, color) in zip(rng.permutation(4), pairs, strict=False):
        again = values.get(kind) and rng.random() < 0.4
        items.append(
            make_item(rng, split, int(cell), kind, color, CANVAS, SIDES, pick(rng, values[kind]) if again else "")
        )
        if kind in values:
            values[kind].append(items[-1].value)
    return Scene(tuple(items), make_ground(rng, split, CANVAS.side))


def possible(pictures: tuple[Scene, ...], rng: np.random.Generator) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """Everything that can be asked without ambiguity: (words of the question, answer) by category."""
    asks: dict[str, list[tuple[tuple[str, ...], str]]] = {category: [] for category in CATEGORIES}
    names = [{item.name for item in picture.shapes} for picture in pictures]
    kinds = [{item.kind for item in picture.shapes} for picture in pictures]
    colors = [{item.value for item in picture.shapes} for picture in pictures]
    there = [{item.kind: item for item in picture.items} for picture in pictures]
    once = {name: [name in names_ for names_ in names].index(True) for name in set.union(*names)
            if sum(name in names_ for names_ in names) == 1}  # fmt: skip
    asks["which"] = [((name,), str(1 + k)) for name, k in sorted(once.items())]
    asks["which"] += [
        ((f"{kind} {item.value}",), str(1 + k)) for kind in ("digit", "word") for k, item in alone(there, kind)
    ]
    asks["count"] = [((f"a {kind}",), str(sum(kind in ks for ks in kinds))) for kind in SHAPES]
    asks["count"] += [((f"a {color} shape",), str(sum(color in cs for cs in colors))) for color in COLORS]
    for kind in ("digit", "word"):
        asks[kind] = [((str(1 + k),), items[kind].value) for k, items in enumerate(there) if kind in items]
        asks["count"].append(((f"a {kind}",), str(sum(kind in items for items in there))))
    for kind in (*SHAPES, "digit", "word"):
        for (i, a), (j, b) in combinations([(k, items[kind]) for k, items in enumerate(there) if kind in items], 2):
            which = kind if kind in ("digit", "word") else f"color of {kind}"
            asks["same"].append(
                ((f"picture {1 + i} and picture {1 + j}", which), "yes" if a.value == b.value else "no")
            )
    for k, mine in enumerate(kinds):
        own = mine - set.union(*(kinds[j] for j in range(len(kinds)) if j != k))
        if len(own) == 1:
            asks["only"].append(((str(1 + k),), own.pop()))
    asks["color"] = [((i.kind, str(1 + k)), i.value) for k, picture in enumerate(pictures) for i in picture.shapes]
    for (a, i), (b, j) in combinations(sorted(once.items()), 2):
        if i != j:
            pair = (a, b) if rng.random() < 0.5 else (b, a)
            asks["order"].append((pair, a if i < j else b))
    return asks


def alone(there: list[dict[str, Item]], kind: str) -> list[tuple[int, Item]]:
    """(picture, object) of the words or digits that no other picture repeats."""
    values = [items[kind].value for items in there if kind in items]
    return [(k, items[kind]) for k, items in enumerate(there) if kind in items and values.count(items[kind].value) == 1]


def ask(pictures: tuple[Scene, ...], rng: np.random.Generator, category: str) -> Question | None:
    """One question of this category, or None where the pictures have none."""
    options = possible(pictures, rng)[category]
    if not options:
        return None
    words, answer = evenly(rng, options)
    return Question(pick(rng, WORDINGS[category]).format(*words), answer, category)
