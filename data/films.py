"""Short videos of things that move, appear, blink and change, and questions that no single frame answers.

Eight to sixteen frames of 64 x 64 pixels on a ground that stands still. A frame has two lanes, beside or above each
other; in each of them one thing moves along, or one or two things stand and do something.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
from questions import Question, evenly
from scenes import COLORS, DIGITS, SHAPES, Canvas, Ground, Item, Scene, make_ground, make_item, pick

CANVAS = Canvas(64, 2)
SIDES = (17, 25)
LENGTHS = (8, 12, 16)
WAYS = ("right", "down", "left", "up")
CATEGORIES = ("direction", "order", "times", "change", "digit", "faster")
WORDINGS = {
    "direction": ("Which way does the {0} move?", "Where does the {0} move?"),
    "order": ("Which appears first, the {0} or the {1}?",),
    "times": ("How often does the {0} appear?",),
    "become": ("What color does the {0} become?", "What color is the {0} at the end?"),
    "before": ("What color is the {0} at first?",),
    "last": ("What is the last digit?", "Which digit is the last?"),
    "first": ("What is the first digit?", "Which digit is the first?"),
    "faster": ("Which is faster, the {0} or the {1}?",),
}


@dataclass(frozen=True)
class Actor:
    """One thing and what it does.

    Attributes:
        does: "move", "appear", "blink", "change", "count" (a digit that changes) or "stand".
        frames: what is seen of it in each frame, None where it is not there.
        told: the direction, the first frame, how often, the colors or the digits.
        speed: pixels that it moves in the whole film.
    """

    does: str
    name: str
    frames: tuple[Item | None, ...]
    told: tuple = ()
    speed: float = 0.0


@dataclass(frozen=True)
class Film:
    actors: tuple[Actor, ...]
    ground: Ground

    def __len__(self) -> int:
        return len(self.actors[0].frames)

    def scenes(self) -> list[Scene]:
        """Its frames."""
        seen = zip(*(actor.frames for actor in self.actors), strict=True)
        return [Scene(tuple(item for item in items if item is not None), self.ground) for items in seen]


def make_film(rng: np.random.Generator, split: str, length: int, blinks: bool = False) -> Film:
    """`blinks`: something does, for sure, for there to be more to learn counting from."""
    across = bool(rng.random() < 0.5)  # lanes lie above each other
    kinds = [SHAPES[i] for i in rng.permutation(len(SHAPES))]  # no two things of one shape
    wanted = pick(rng, ("moves", "moves", "appear", "appear", "blink", "change", "count", "any"))
    wanted = "blink" if blinks else wanted
    actors: list[Actor] = []
    for lane in range(2):
        move = wanted == "moves" or (wanted == "any" and rng.random() < 0.4)
        cells = [2 * lane, 2 * lane + 1] if across else [lane, lane + 2]
        if move:
            actors.append(mover(rng, split, cells, across, kinds.pop(), length))
            continue
        for number, cell in enumerate(cells):
            counts = any(actor.does == "count" for actor in actors)
            mine = number == 0 and wanted not in ("any", "moves")
            does = wanted if mine else pick(rng, ("appear", "blink", "change", "count", "stand", "none"))
            if does != "none" and not (does == "count" and counts):
                actors.append(ACTING[does](rng, split, cell, kinds.pop(), length))
    if not actors:
        actors.append(blinker(rng, split, 0, kinds.pop(), length))
    return Film(tuple(actors), make_ground(rng, split, CANVAS.side))


def thing(rng: np.random.Generator, split: str, cell: int, kind: str) -> Item:
    return make_item(rng, split, cell, kind, pick(rng, tuple(COLORS)), CANVAS, SIDES)


def mover(rng: np.random.Generator, split: str, cells: list[int], across: bool, kind: str, length: int) -> Actor:
    """Along its lane, at one speed, far or less far."""
    item = thing(rng, split, cells[0], kind)
    side, axis = item.box[2] - item.box[0], 0 if across else 1
    room = CANVAS.side - side
    far = float(rng.uniform(0.75, 1.0) if rng.random() < 0.5 else rng.uniform(0.25, 0.45)) * room
    start = float(rng.uniform(0, room - far))
    ends = (start, start + far)
    forward = bool(rng.random() < 0.5)
    path = np.linspace(*(ends if forward else ends[::-1]), length)
    frames = []
    for along in path.round().astype(int):
        box = list(item.box)
        box[axis], box[axis + 2] = int(along), int(along) + side
        frames.append(replace(item, box=tuple(box)))
    return Actor("move", item.name, tuple(frames), (WAYS[(0 if forward else 2) + axis],), far)


def appearer(rng: np.random.Generator, split: str, cell: int, kind: str, length: int) -> Actor:
    """Not there, then there to the end."""
    item, first = thing(rng, split, cell, kind), int(rng.integers(1, length - 1))
    return Actor("appear", item.name, (None,) * first + (item,) * (length - first), (first,))


def blinker(rng: np.random.Generator, split: str, cell: int, kind: str, length: int) -> Actor:
    """There one to four times, a frame or more each time, and away between."""
    item = thing(rng, split, cell, kind)
    times = int(rng.integers(1, 5 if length > 8 else 4))
    parts = 2 * times + 1  # away, there, away, ..., away; the first and the last may be empty
    shares = np.ones(parts, dtype=int)
    shares[0], shares[-1] = 0, 0
    for _ in range(length - int(shares.sum())):
        shares[int(rng.integers(parts))] += 1
    frames = [item if part % 2 else None for part, share in enumerate(shares) for _ in range(share)]
    return Actor("blink", item.name, tuple(frames), (times,))


def changer(rng: np.random.Generator, split: str, cell: int, kind: str, length: int) -> Actor:
    """Of one color, then of another."""
    item, at = thing(rng, split, cell, kind), int(rng.integers(2, length - 1))
    then = replace(item, value=pick(rng, [color for color in COLORS if color != item.value]))
    return Actor("change", item.kind, (item,) * at + (then,) * (length - at), (item.value, then.value))


def counter(rng: np.random.Generator, split: str, cell: int, _: str, length: int) -> Actor:
    """Two to four digits one after the other in one place, no two neighbours alike."""
    count = int(rng.integers(2, 5))
    digits: list[str] = []
    while len(digits) < count:
        digits.append(pick(rng, [digit for digit in DIGITS if digits[-1:] != [digit]]))
    cuts = np.sort(rng.permutation(np.arange(2, length, 2))[: count - 1])
    shown = [make_item(rng, split, cell, "digit", canvas=CANVAS, value=digit) for digit in digits]
    which = np.searchsorted(cuts, np.arange(length), side="right")
    return Actor("count", "digit", tuple(shown[i] for i in which), (digits[0], digits[-1]))


def stander(rng: np.random.Generator, split: str, cell: int, kind: str, length: int) -> Actor:
    item = thing(rng, split, cell, kind)
    return Actor("stand", item.name, (item,) * length)


ACTING = {"appear": appearer, "blink": blinker, "change": changer, "count": counter, "stand": stander}


def possible(film: Film) -> dict[str, list[tuple[str, str]]]:
    """Everything that can be asked without ambiguity: (question, answer) by category."""
    asks: dict[str, list[tuple[str, str]]] = {category: [] for category in CATEGORIES}
    for actor in film.actors:
        if actor.does == "move":
            asks["direction"] += worded("direction", actor.told[0], actor.name)
        elif actor.does == "blink":
            asks["times"] += worded("times", str(actor.told[0]), actor.name)
        elif actor.does == "change":
            asks["change"] += worded("become", actor.told[1], actor.name) + worded("before", actor.told[0], actor.name)
        elif actor.does == "count":
            asks["digit"] += worded("first", actor.told[0]) + worded("last", actor.told[1])
    for a, b in permutations([actor for actor in film.actors if actor.does == "appear"], 2):
        if abs(a.told[0] - b.told[0]) >= 2:
            asks["order"] += worded("order", min(a, b, key=lambda actor: actor.told[0]).name, a.name, b.name)
    for a, b in permutations([actor for actor in film.actors if actor.does == "move"], 2):
        if max(a.speed, b.speed) >= 1.6 * min(a.speed, b.speed):
            asks["faster"] += worded("faster", max(a, b, key=lambda actor: actor.speed).name, a.name, b.name)
    return asks


def worded(wording: str, answer: str, *names: str) -> list[tuple[str, str]]:
    return [(text.format(*names), answer) for text in WORDINGS[wording]]


def ask(film: Film, rng: np.random.Generator, category: str) -> Question | None:
    """One question of this category, or None where the film has none."""
    options = possible(film)[category]
    return Question(*evenly(rng, options), category) if options else None
