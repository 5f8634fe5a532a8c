"""What LLaVA-OneVision's views show, patch by patch, and in which order its decoder gets their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from concepts import KINDS
from films import Film
from PIL import Image
from scenes import COLORS, SHAPES, Item, Scene, draw, draw_ground
from siglip_qwen import GRID, PATCH, SIDE, tokenizer

GROUPS = {"kind": len(KINDS), "color": 1 + len(COLORS), "row": 1 + GRID, "column": 1 + GRID, "anchor": 2}
KIND, ANCHOR = 0, 4
PLACES = {"view": 0, "crop": 1, "picture": 5, "frame": 9}  # first class of each, for telling tokens' places
NEWLINE, TEXT = -2, -1
EDGE = 1e-6  # pixels: what lies where two crops meet is in the second, not by rounding in neither


@dataclass(frozen=True)
class Window:
    """Where a view of SIDE x SIDE pixels lies on a picture: pixel x of the picture is x * scale - left of the view."""

    scale: float = 1.0
    left: int = 0
    top: int = 0


def covered(low: float, high: float) -> np.ndarray:
    """Share of each of the patches along one side that lies between two pixel positions."""
    edges = np.arange(GRID) * PATCH
    return np.clip(np.minimum(high, edges + PATCH) - np.maximum(low, edges), 0, PATCH) / PATCH


def labels_of(items: tuple[Item, ...], window: Window = Window(), ways: tuple[int, ...] = ()) -> np.ndarray:
    """Index within each group of GROUPS for every patch of a view, and of what moves its way: int64 [patches, 6]."""
    labels = np.zeros((GRID * GRID, len(GROUPS) + 1), dtype=np.int64)
    most = np.full(GRID * GRID, 0.3)
    rows, columns = 1 + np.arange(GRID * GRID) // GRID, 1 + np.arange(GRID * GRID) % GRID
    for item, way in zip(items, ways or (0,) * len(items), strict=True):
        left, right = (x * window.scale - window.left for x in item.box[::2])
        top, bottom = (y * window.scale - window.top for y in item.box[1::2])
        share = np.outer(covered(top, bottom), covered(left, right)).ravel()
        column, row = (int((sum(ends) / 2 + EDGE) // PATCH) for ends in ((left, right), (top, bottom)))
        anchor = row * GRID + column if 0 <= row < GRID and 0 <= column < GRID else None
        if anchor is not None:
            share[anchor] = 2.0
        mine = share > most
        most = np.maximum(most, share)
        kind = KINDS.index(item.kind if item.kind in SHAPES else item.value)
        labels[mine, 0], labels[mine, 1] = kind, 1 + tuple(COLORS).index(item.value) if item.kind in SHAPES else 0
        labels[mine, 2], labels[mine, 3], labels[mine, 5] = rows[mine], columns[mine], way
        labels[mine, ANCHOR] = 0
        if anchor is not None:
            labels[anchor, ANCHOR] = 1
    return labels


def look_closely(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The whole and four crops of one picture, as LlavaOnevisionImageProcessor cuts them: uint8 views, and labels."""
    picture, scale = draw(scene), 2 * SIDE / scene.ground.side
    half = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    twice = np.asarray(picture.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC))
    corners = [(left, top) for top in (0, SIDE) for left in (0, SIDE)]
    views = [np.asarray(half), *(twice[top : top + SIDE, left : left + SIDE] for left, top in corners)]
    windows = [Window(scale / 2), *(Window(scale, left, top) for left, top in corners)]
    return np.stack(views), np.stack([labels_of(scene.items, window) for window in windows])


def look_at_each(pictures: tuple[Scene, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Each of several small pictures."""
    views = [np.asarray(draw(picture)) for picture in pictures]
    return np.stack(views), np.stack([labels_of(picture.items) for picture in pictures])


def watch(film: Film) -> tuple[np.ndarray, np.ndarray]:
    """Every frame of a video."""
    ground, ways = draw_ground(film.ground), ("", "right", "down", "left", "up")
    views, labels = [], []
    for index, scene in enumerate(film.scenes()):
        there = [actor for actor in film.actors if actor.frames[index] is not None]
        moves = tuple(ways.index(actor.told[0]) if actor.does == "move" else 0 for actor in there)
        views.append(np.asarray(draw(scene, ground)))
        labels.append(labels_of(scene.items, ways=moves))
    return np.stack(views), np.stack(labels)


@dataclass(frozen=True)
class Shown:
    """The prompt up to the question.

    Attributes:
        ids: (L,) text tokens, 0 where there is none.
        source: (L,) which token of its views, row by row, NEWLINE or TEXT.
        place: (L,) class of where in all that is shown a visual token is; -1 where there is none.
        pooled: whether four tokens of a view have become one.
    """

    ids: np.ndarray
    source: np.ndarray
    place: np.ndarray
    pooled: bool = False


def _shown(parts: list[tuple[str | list[int], int]], pooled: bool = False) -> Shown:
    """`parts`: texts, and lists of sources with the class of their place."""
    encode, ids, source, place = tokenizer(), [], [], []
    for part, number in parts:
        text = encode.encode(part, add_special_tokens=False) if isinstance(part, str) else []
        ids += text or [0] * len(part)
        source += [TEXT] * len(text) or part
        place += [-1] * len(text) or [number if token >= 0 else -1 for token in part]
    return Shown(np.array(ids), np.array(source), np.array(place), pooled)


def closely() -> Shown:
    """One picture: the whole, then the rows of its crops, each with a newline."""
    patches = GRID * GRID
    parts: list[tuple[str | list[int], int]] = [("<s> USER:", 0), (list(range(patches)), PLACES["view"])]
    for row in range(2 * GRID):
        for half in range(2):
            crop = 2 * (row // GRID) + half
            start = (1 + crop) * patches + row % GRID * GRID
            parts.append((list(range(start, start + GRID)), PLACES["crop"] + crop))
        parts.append(([NEWLINE], 0))
    return _shown(parts)


def each(count: int) -> Shown:
    """Several pictures, numbered, each with a newline."""
    patches = GRID * GRID
    parts: list[tuple[str | list[int], int]] = [("<s> USER:", 0)]
    for index in range(count):
        parts.append((f"Picture {1 + index}:", 0))
        parts.append((list(range(index * patches, (index + 1) * patches)), PLACES["picture"] + index))
        parts.append(([NEWLINE], 0))
    return _shown(parts)


def frames(count: int) -> Shown:
    """A video: a quarter of the tokens of every frame, and a newline at the end."""
    patches = GRID * GRID // 4
    parts: list[tuple[str | list[int], int]] = [("<s> USER:", 0)]
    parts += [(list(range(i * patches, (i + 1) * patches)), PLACES["frame"] + i) for i in range(count)]
    return _shown([*parts, ([NEWLINE], 0)], pooled=True)
