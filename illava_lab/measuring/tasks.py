"""Tasks: questions about images with one short right answer each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from os import PathLike, fsdecode
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from illava_lab.errors import LabError
from illava_lab.models.folder import first_line
from illava_lab.models.images import read_image
from illava_lab.paths import data_dir, is_file, quoted
from illava_lab.session.asked import check_count

COLUMNS = ("image", "question", "answer", "category", "image_id")


EMBEDDED = ("test", "validation")


@dataclass(frozen=True, eq=False)
class Task:
    """Questions with their right answers.

    Attributes:
        name: "test", "validation" or a path.
        samples: one row per question, numbered from 0: question, answer, category, image_id.
        images: image_id -> encoded image (PNG or another format that `read_image` reads).
    """

    name: str
    samples: pd.DataFrame
    images: dict[str, bytes]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def categories(self) -> list[str]:
        """In alphabetical order."""
        return sorted(self.samples["category"].unique())

    def image(self, image_id: str) -> Image.Image:
        """The decoded image.

        Raises:
            LabError: it cannot be read.
        """
        try:
            return read_image(self.images[image_id])
        except LabError as error:
            raise LabError(f"task {quoted(self.name)}, image {quoted(image_id)}: {error}") from None

    def check_images(self) -> None:
        """Decode every image once, so that a broken one is found before hours of work and not after.

        Raises:
            LabError: an image cannot be read.
        """
        for image_id in self.images:
            self.image(image_id)

    def limited(self, limit: int | None) -> Task:
        """At most `limit` questions of whole images, but at least one image; None for all.

        Every category is there as long as there is room. The draw is fixed: the same limit gives the same questions.

        Raises:
            LabError: limit is no whole number of at least 1.
        """
        if limit is None:
            return self
        limit = check_count("limit", limit)
        if limit >= len(self):
            return self
        asked = self.samples.groupby("image_id", sort=False)["category"].agg(list)
        order = [asked.index[i] for i in np.random.default_rng(0).permutation(len(asked))]
        # One image for each category first, then whatever comes.
        first = [next(i for i in order if category in asked[i]) for category in self.categories]
        chosen, room = set[str](), limit
        for image_id in [*first, *order]:
            if image_id not in chosen and (len(asked[image_id]) <= room or not chosen):
                chosen.add(image_id)
                room -= len(asked[image_id])
        samples = self.samples[self.samples["image_id"].isin(chosen)].reset_index(drop=True)
        return Task(self.name, samples, {key: value for key, value in self.images.items() if key in chosen})

    def digest(self) -> str:
        """A fingerprint of every question, answer and image."""
        out = hashlib.sha256(self.samples.to_csv().encode(errors="surrogatepass"))
        for image_id, data in self.images.items():
            out.update(image_id.encode(errors="surrogatepass") + hashlib.sha256(data).digest())
        return out.hexdigest()[:16]


def load_task(name: str | PathLike = "test") -> Task:
    """The embedded "test" or "validation" set, or a Parquet file with the columns of `COLUMNS`.

    `image` holds encoded images as bytes; rows with the same `image_id` share one image.

    Raises:
        LabError: no such file, one that cannot be read, a missing column, a missing or empty value.
    """
    if not isinstance(name, (str, PathLike)) or not str(name):
        raise LabError(f"task must be {' or '.join(map(repr, EMBEDDED))} or a Parquet file, got {name!r}")
    name = fsdecode(name)
    path = data_dir() / f"{name}.parquet" if name in EMBEDDED else Path(name)
    if not is_file(path):
        known = " or ".join(map(repr, EMBEDDED))
        raise LabError(f"task must be {known} or a Parquet file; there is no file {quoted(path)}")
    shown = quoted(name)
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise LabError(f"task {shown}: not a Parquet file that can be read ({first_line(error)})") from None
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise LabError(f"task {shown} lacks the column {missing[0]!r}; it needs {', '.join(COLUMNS)}")
    if table.empty:
        raise LabError(f"task {shown} holds no questions")
    for column in COLUMNS:
        wrong = table[column].isna()
        if column == "image":
            wrong |= ~table[column].map(lambda value: isinstance(value, bytes))
        elif column in ("question", "answer"):
            wrong |= table[column].astype(str).str.strip() == ""
        if wrong.any():
            row = int(np.argmax(wrong.to_numpy()))
            raise LabError(f"task {shown}, row {row}: the column {column!r} holds no usable value")
    samples = table[list(COLUMNS[1:])].astype(str).reset_index(drop=True)
    first = ~samples["image_id"].duplicated().to_numpy()
    images = dict(zip(samples["image_id"][first], table["image"][first], strict=True))
    return Task(name, samples, images)
