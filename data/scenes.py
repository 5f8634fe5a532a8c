"""Scenes with known contents, their pictures and their questions.

A scene is a 3x3 layout of coloured shapes, handwritten digits and printed words on a crop of a real
photograph. We place every object, so every answer is right by construction. Digits and photographs
are split: what the test split shows is never drawn for training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import skimage
import sklearn.datasets
from PIL import Image, ImageDraw, ImageFont

SIZE = 112
CATEGORIES = ("color", "shape", "place", "count", "digit", "exists", "relation", "word")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = {
    "red": (215, 35, 35),
    "green": (40, 165, 60),
    "blue": (40, 85, 220),
    "yellow": (242, 215, 45),
    "purple": (150, 50, 190),
    "white": (244, 244, 244),
}
DIGITS = tuple("0123456789")
WORDS = ("cat", "dog", "sun", "tree", "fish", "bird", "moon", "cake",
         "milk", "boat", "lamp", "rain", "book", "door", "hand", "leaf")  # fmt: skip
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}

PHOTOS = {
    "train": ("astronaut.png", "chelsea.png", "china.jpg", "rocket.jpg", "brick.png", "gravel.png",
              "grass.png", "moon.png", "hubble_deep_field.jpg"),
    "validation": ("coins.png", "clock_motion.png"),
    "test": ("coffee.png", "flower.jpg", "camera.png"),
}  # fmt: skip
DIGIT_SPLIT = {"test": slice(0, 300), "validation": slice(300, 450), "train": slice(450, None)}


@dataclass(frozen=True)
class Item:
    """One object. `kind` is a shape, "digit" or "word"; `value` is its color, its digit or its word."""

    kind: str
    value: str
    cell: int  # 0..8, row by row
    box: tuple[int, int, int, int]  # left, top, right, bottom; it always contains the center of its cell
    look: tuple[float, ...]  # angle and tint of a shape, index of the digit's sample, font size of the word

    @property
    def name(self) -> str:
        return self.kind if self.kind in ("digit", "word") else f"{self.value} {self.kind}"


@dataclass(frozen=True)
class Scene:
    items: tuple[Item, ...]
    photo: str
    crop: tuple[float, float, float, float]
    flip: bool
    tone: tuple[float, float]  # contrast kept and middle gray of the background

    @property
    def shapes(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.kind in SHAPES)


@dataclass(frozen=True)
class Question:
    text: str
    answer: str
    category: str


@cache
def photograph(name: str) -> Image.Image:
    folders = (Path(skimage.__file__).parent / "data", Path(sklearn.datasets.__file__).parent / "images")
    return Image.open(next(folder / name for folder in folders if (folder / name).exists())).convert("RGB")


@cache
def digit_samples() -> tuple[np.ndarray, np.ndarray]:
    """All handwritten digits in one fixed shuffled order, so that slices of it are the splits."""
    bunch = sklearn.datasets.load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return bunch.images[order], bunch.target[order]


@cache
def digit_indices(split: str) -> np.ndarray:
    return np.arange(len(digit_samples()[1]))[DIGIT_SPLIT[split]]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


def place_box(rng: np.random.Generator, cell: int, width: int, height: int) -> tuple[int, int, int, int]:
    """A box of this size in the cell, off center by chance but always over the cell's center."""
    corner = []
    for index, extent in ((cell % 3, width), (cell // 3, height)):
        middle = (index + 0.5) * SIZE / 3
        play = max(0.0, min((SIZE / 3 - extent) / 2 - 1, extent / 2 - 3))
        corner.append(round(middle - extent / 2 + rng.uniform(-play, play)))
    return corner[0], corner[1], corner[0] + width, corner[1] + height


def make_item(rng: np.random.Generator, split: str, cell: int, kind: str, color: str = "") -> Item:
    if kind == "digit":
        index, side = int(pick(rng, digit_indices(split))), int(rng.integers(22, 29))
        value = str(digit_samples()[1][index])
        return Item(kind, value, cell, place_box(rng, cell, side, side), (index,))
    if kind == "word":
        value, size = pick(rng, WORDS), int(rng.integers(11, 13))
        left, _, right, _ = font(size).getbbox(value)
        return Item(kind, value, cell, place_box(rng, cell, int(right - left) + 5, size + 4), (size,))
    side = int(rng.integers(18, 33))
    look = (float(rng.uniform(-12, 12)), *(float(x) for x in rng.uniform(-14, 14, 3)))
    return Item(kind, color, cell, place_box(rng, cell, side, side), look)


def make_scene(rng: np.random.Generator, split: str, crowded: bool = False) -> Scene:
    """Two to six shapes, mostly a digit and a word. `crowded` fills all nine cells with anything: more
    to learn from per picture when only the vision tower is trained."""
    cells = [int(c) for c in rng.permutation(9)]
    if crowded:
        chosen = rng.choice(("shape", "digit", "word"), size=9, p=(0.45, 0.3, 0.25))
        items = []
        for cell, choice in zip(cells, chosen, strict=True):
            kind = pick(rng, SHAPES) if choice == "shape" else str(choice)
            items.append(make_item(rng, split, cell, kind, pick(rng, tuple(COLORS))))
    else:
        pairs: list[tuple[str, str]] = []
        count = int(rng.integers(2, 7))
        repeat = rng.uniform(0, 0.7, 2)
        while len(pairs) < count:  # repeats give counting something to count; no two shapes are alike
            kind, color = pick(rng, SHAPES), pick(rng, tuple(COLORS))
            if pairs and rng.random() < repeat[0]:
                kind = pick(rng, pairs)[0]
            if pairs and rng.random() < repeat[1]:
                color = pick(rng, pairs)[1]
            if (kind, color) not in pairs:
                pairs.append((kind, color))
        pairs += [(kind, "") for kind in ("digit", "word") if rng.random() < 0.85]
        items = [make_item(rng, split, cell, *pair) for cell, pair in zip(cells, pairs, strict=False)]
    name = pick(rng, PHOTOS[split])
    width, height = photograph(name).size
    side = rng.uniform(SIZE, min(width, height))
    left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
    tone = (float(rng.uniform(0.35, 0.7)), float(rng.uniform(70, 170)))
    return Scene(tuple(items), name, (left, top, left + side, top + side), bool(rng.random() < 0.5), tone)


def polygon(kind: str, angle: float) -> np.ndarray:
    """Corners in a box from -1 to 1."""
    if kind == "square":
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.9
    elif kind == "triangle":
        points = np.array([(0, -1), (1, 0.85), (-1, 0.85)])
    elif kind == "star":
        turn = np.pi * np.arange(10) / 5
        points = np.stack([np.sin(turn), -np.cos(turn)], 1) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
    else:
        a = 0.34
        points = np.array([(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a),
                           (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)])  # fmt: skip
    turn = np.deg2rad(angle)
    points = points @ np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    return points / max(1.0, np.abs(points).max())


def shape_picture(item: Item, zoom: int = 4) -> Image.Image:
    """The shape with a thin dark outline, drawn large and shrunk so that its edges are smooth."""
    side = (item.box[2] - item.box[0]) * zoom
    picture = Image.new("RGBA", (side, side), (25, 25, 25, 0))
    pen, dark = ImageDraw.Draw(picture), (25, 25, 25, 255)
    tinted = (int(np.clip(c + t, 0, 255)) for c, t in zip(COLORS[item.value], item.look[1:], strict=True))
    color = (*tinted, 255)
    edge, full = zoom, (0, 0, side - 1, side - 1)
    if item.kind in ("circle", "ring"):
        pen.ellipse(full, fill=color, outline=dark, width=edge)
        if item.kind == "ring":
            hole = side * 0.28
            pen.ellipse((hole, hole, side - hole, side - hole), fill=(25, 25, 25, 0), outline=dark, width=edge)
    else:
        corners = [tuple(p) for p in (polygon(item.kind, item.look[0]) + 1) / 2 * (side - 2 * edge) + edge]
        pen.polygon(corners, fill=color)
        pen.line([*corners, corners[0], corners[1]], fill=dark, width=edge, joint="curve")
    return picture.reduce(zoom)


def digit_picture(item: Item) -> Image.Image:
    """Dark ink on a light sticker."""
    ink = digit_samples()[0][int(item.look[0])] / 16
    side = item.box[2] - item.box[0]
    small = Image.fromarray((245 - 225 * ink).round().astype(np.uint8))
    picture = Image.new("L", (side, side), 245)
    picture.paste(small.resize((side - 4, side - 4), Image.Resampling.BICUBIC), (2, 2))
    return picture.convert("RGBA")


def word_picture(item: Item) -> Image.Image:
    """Small dark type on a light label."""
    picture = Image.new("RGBA", (item.box[2] - item.box[0], item.box[3] - item.box[1]), (245, 245, 245, 255))
    ImageDraw.Draw(picture).text((picture.width / 2, picture.height / 2), item.value, (15, 15, 15),
                                 font(int(item.look[0])), anchor="mm")  # fmt: skip
    return picture


def draw(scene: Scene) -> Image.Image:
    image = photograph(scene.photo).resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=scene.crop)
    if scene.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    contrast, gray = scene.tone
    pixels = np.asarray(image, dtype=np.float32)
    soft = (pixels - pixels.mean()) * contrast + gray
    image = Image.fromarray(np.clip(soft, 0, 255).astype(np.uint8))
    for item in scene.items:
        picture = {"digit": digit_picture, "word": word_picture}.get(item.kind, shape_picture)(item)
        image.paste(picture, item.box[:2], picture)
    return image


# --- questions ----------------------------------------------------------------------------------

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
    """One question of this category, or None where the scene has none. Rare answers are asked for as
    often as frequent ones, so that a model cannot live off "How many ...? 1"."""
    options = possible(scene, rng)[category]
    if not options:
        return None
    answer = pick(rng, sorted({a for _, a in options}))
    subject, answer = pick(rng, [o for o in options if o[1] == answer])
    text = subject if category == "relation" else pick(rng, WORDINGS[category]).format(subject)
    return Question(text, answer, category)


def questions(scene: Scene, rng: np.random.Generator, categories: tuple[str, ...] = CATEGORIES) -> list[Question]:
    """One question of each of these categories that the scene allows."""
    asked = (ask(scene, rng, category) for category in categories)
    return [question for question in asked if question is not None]
