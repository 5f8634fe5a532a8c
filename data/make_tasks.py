"""Write the question files: python make_tasks.py test, or validation, multi-image, multi-image-validation, ...

`--all` writes every one of them. What the splits show is disjoint; see `scenes.PHOTOS` and `scenes.DIGIT_SPLIT`.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import films
import large
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import questions
import scenes
import several
from PIL import Image
from scenes import draw, draw_ground, pick

HERE = Path(__file__).parent
TRIES = 1000  # draws until one allows a question of the category that was asked least


@dataclass(frozen=True)
class Kind:
    """What a task shows and asks.

    Attributes:
        seed: of its test set; that of its validation set is one more.
        shows: the column of what is shown: "image", "images" or "frames".
        sizes: prompts of the test set and of the validation set.
        turns: whether the questions about one picture are one conversation.
        balanced: whether what is shown is drawn until it allows a question of the category that was asked least.
        rounds: how often each category is tried; more than once where few categories fit what is shown.
    """

    seed: int
    shows: str
    categories: tuple[str, ...]
    make: Callable[[np.random.Generator, str], Any]
    ask: Callable[[Any, np.random.Generator, str], questions.Question | None]
    encode: Callable[[Any], Any]
    sizes: tuple[int, int] = (160, 50)
    turns: bool = False
    balanced: bool = True
    rounds: int = 1


def png(picture: Image.Image, **how: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **how)
    return buffer.getvalue()


def webp(picture: Image.Image) -> bytes:
    """Without loss, and smaller than a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()


def frames(film: films.Film) -> list[bytes]:
    """Frames that are not compressed: the file finds what each has in common with the one before."""
    ground = draw_ground(film.ground)
    return [png(draw(scene, ground), compress_level=0) for scene in film.scenes()]


KINDS = {
    "test": Kind(20_001, "image", scenes.CATEGORIES, scenes.make_scene, questions.ask,
                 lambda scene: png(draw(scene), optimize=True), (320, 100), balanced=False),
    "conversation": Kind(20_101, "image", scenes.CATEGORIES, scenes.make_scene, questions.ask,
                         lambda scene: webp(draw(scene)), turns=True),
    "fine": Kind(20_201, "image", large.CATEGORIES, large.make_scene, large.ask, lambda scene: webp(draw(scene))),
    "multi-image": Kind(20_301, "images", several.CATEGORIES,
                        lambda rng, split: several.make_pictures(rng, split, int(rng.integers(2, 5))), several.ask,
                        lambda pictures: [webp(draw(picture)) for picture in pictures]),
    "video": Kind(20_401, "frames", films.CATEGORIES,
                  lambda rng, split: films.make_film(rng, split, pick(rng, films.LENGTHS)), films.ask, frames,
                  sizes=(240, 80), rounds=3),
}  # fmt: skip


def rows(name: str, split: str, count: int, each: int = 4) -> list[dict]:
    """`each` questions of different categories about each of `count` prompts; the categories asked least come first."""
    kind = KINDS[name]
    rng = np.random.default_rng(kind.seed + (split == "validation"))
    asked: Counter[str] = Counter()
    table = []
    for index in range(count):
        least = min(kind.categories, key=lambda category: asked[category])
        for _ in range(TRIES if kind.balanced else 1):
            what = kind.make(rng, split)
            if not kind.balanced or kind.ask(what, rng, least) is not None:
                break
        shown = kind.encode(what)
        found: dict[tuple[str, str], questions.Question] = {}
        for _ in range(kind.rounds):
            for category in sorted(kind.categories, key=lambda category: (asked[category], rng.random())):
                question = kind.ask(what, rng, category)
                if question is not None and len(found) < each:
                    found.setdefault((category, question.answer), question)
        for turn, question in enumerate(found.values()):
            asked[question.category] += 1
            row = {kind.shows: shown, "question": question.text, "answer": question.answer,
                   "category": question.category, "image_id": f"{split}-{index:04d}"}  # fmt: skip
            table.append(row | ({"turn": turn} if kind.turns else {}))
    return table


def main() -> None:
    names = [*KINDS, *("validation" if name == "test" else f"{name}-validation" for name in KINDS)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", choices=names)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for task in names if args.all else [args.task or parser.error("name a task, or --all")]:
        split = "validation" if task.endswith("validation") else "test"
        name = task.removesuffix("validation").removesuffix("-") or "test"
        folder = HERE if name == "test" else HERE / "tasks"
        folder.mkdir(exist_ok=True)
        table = pa.Table.from_pylist(rows(name, split, KINDS[name].sizes[split == "validation"]))
        # A dictionary of the whole column stores an image once, however many questions are about it.
        pq.write_table(table, args.out or folder / f"{task}.parquet", compression="zstd",
                       dictionary_pagesize_limit=64 << 20, row_group_size=1 << 20)  # fmt: skip


if __name__ == "__main__":
    main()
