"""Write the question files: python make_test_set.py test --images 320, likewise validation."""

from __future__ import annotations

import argparse
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scenes import CATEGORIES, ask, draw, make_scene

SEEDS = {"test": 20_001, "validation": 20_002}


def rows(split: str, images: int, each: int) -> list[dict]:
    """`each` questions of different categories about every image; the categories asked least come first."""
    rng = np.random.default_rng(SEEDS[split])
    asked: Counter[str] = Counter()
    table = []
    for index in range(images):
        scene = make_scene(rng, split)
        buffer = io.BytesIO()
        draw(scene).save(buffer, "PNG", optimize=True)
        order = sorted(CATEGORIES, key=lambda category: (asked[category], rng.random()))
        found = [question for category in order if (question := ask(scene, rng, category))][:each]
        for question in found:
            asked[question.category] += 1
            table.append({"image": buffer.getvalue(), "question": question.text, "answer": question.answer,
                          "category": question.category, "image_id": f"{split}-{index:04d}"})  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("split", choices=SEEDS)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    table = pa.Table.from_pylist(rows(args.split, args.images, args.each))
    # A dictionary of the whole column stores an image once, however many questions are about it.
    pq.write_table(table, args.out or Path(__file__).with_name(f"{args.split}.parquet"), compression="zstd",
                   dictionary_pagesize_limit=64 << 20, row_group_size=1 << 20)  # fmt: skip


if __name__ == "__main__":
    main()
