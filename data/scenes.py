"""Scenes with known contents, and their pictures.

A scene is a 3x3 layout of coloured shapes, handwritten digits and printed words on a crop of a real
photograph. We place every object, so every answer is right by construction. Digits and photographs
are split: what the test split shows is never drawn for training.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

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


class Ground(NamedTuple):
    """What is behind the objects: a part of a photograph, `side` pixels wide and high."""

    photo: str
    crop: tuple[float, float, float, float]
    flip: bool
    tone: tuple[float, float]  # contrast kept and middle gray
    side: int = SIZE


@dataclass(frozen=True)
class Scene:
    items: tuple[Item, ...]
    ground: Ground

    @property
    def shapes(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.kind in SHAPES)


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
def digits_like(split: str, value: str) -> np.ndarray:
    """Which digits of the split show this one."""
    indices = digit_indices(split)
    return indices[digit_samples()[1][indices] == int(value)]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


class Canvas(NamedTuple):
    """A square picture of `side` pixels in `across` x `across` cells."""

    side: int
    across: int


NINE = Canvas(SIZE, 3)


def place_box(
    rng: np.random.Generator, cell: int, width: int, height: int, canvas: Canvas = NINE
) -> tuple[int, int, int, int]:
    """A box of this size in the cell, off center by chance but always over the cell's center."""
    corner, room = [], canvas.side / canvas.across
    for index, extent in ((cell % canvas.across, width), (cell // canvas.across, height)):
        middle = (index + 0.5) * room
        play = max(0.0, min((room - extent) / 2 - 1, extent / 2 - 3))
        corner.append(round(middle - extent / 2 + rng.uniform(-play, play)))
    return corner[0], corner[1], corner[0] + width, corner[1] + height


def make_item(
    rng: np.random.Generator,
    split: str,
    cell: int,
    kind: str,
    color: str = "",
    canvas: Canvas = NINE,
    sides: tuple[int, int] = (18, 33),
    value: str = "",
) -> Item:
    """One object, drawn by chance where it is not told: `sides` bounds a shape, `value` is a word or a digit."""
    if kind == "digit":
        choices = digit_indices(split) if not value else digits_like(split, value)
        index, side = int(pick(rng, choices)), int(rng.integers(22, 29))
        return Item(kind, str(digit_samples()[1][index]), cell, place_box(rng, cell, side, side, canvas), (index,))
    if kind == "word":
        value = value or pick(rng, WORDS)
        size = int(rng.integers(11, 13))
        left, _, right, _ = font(size).getbbox(value)
        return Item(kind, value, cell, place_box(rng, cell, int(right - left) + 5, size + 4, canvas), (size,))
    side = int(rng.integers(*sides))
    look = (float(rng.uniform(-12, 12)), *(float(x) for x in rng.uniform(-14, 14, 3)))
    return Item(kind, color, cell, place_box(rng, cell, side, side, canvas), look)


def make_ground(rng: np.random.Generator, split: str, side: int = SIZE) -> Ground:
    """A softened part of a photograph of the split."""
    name = pick(rng, PHOTOS[split])
    width, height = photograph(name).size
    part = rng.uniform(min(SIZE, side), min(width, height))
    left, top = rng.uniform(0, width - part), rng.uniform(0, height - part)
    tone = (float(rng.uniform(0.35, 0.7)), float(rng.uniform(70, 170)))
    return Ground(name, (left, top, left + part, top + part), bool(rng.random() < 0.5), tone, side)


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
    return Scene(tuple(items), make_ground(rng, split))


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


def draw_ground(ground: Ground) -> Image.Image:
    sides = (ground.side, ground.side)
    image = photograph(ground.photo).resize(sides, Image.Resampling.BILINEAR, box=ground.crop)
    if ground.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    contrast, gray = ground.tone
    pixels = np.asarray(image, dtype=np.float32)
    soft = (pixels - pixels.mean()) * contrast + gray
    return Image.fromarray(np.clip(soft, 0, 255).astype(np.uint8))


def draw(scene: Scene, ground: Image.Image | None = None) -> Image.Image:
    """The picture; `ground` is what `draw_ground` gives, where it is drawn already."""
    image = draw_ground(scene.ground) if ground is None else ground.copy()
    for item in scene.items:
        picture = {"digit": digit_picture, "word": word_picture}.get(item.kind, shape_picture)(item)
        image.paste(picture, item.box[:2], picture)
    return image
