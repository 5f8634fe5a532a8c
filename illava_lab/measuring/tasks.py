"""Tasks: questions with one short right answer each, about what they show: a picture, several, or a video."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
from PIL import Image

from illava_lab.errors import LabError, one_of
from illava_lab.models.images import read_image
from illava_lab.models.video import Video, read_video
from illava_lab.paths import quoted
from illava_lab.session.asked import check_count

Kind = Literal["image", "images", "frames"]
Shown: TypeAlias = "Image.Image | list[Image.Image] | Video"
FPS = 2.0
"""Frames of a second: a file names none. Qwen-VL, which alone asks, samples films at this rate."""


@dataclass(frozen=True, eq=False)
class Task:
    """Questions with their right answers.

    Attributes:
        name: of an embedded task, or a path.
        samples: one row per question, numbered from 0: question, answer, category, image_id. In conversations also
            turn: the rows of one image_id are asked in that order, and the model hears its own earlier answers.
        images: image_id -> encoded picture (PNG or another format that `read_image` reads), or a tuple of them.
        kind: what that is: "image", one picture; "images", the pictures of one prompt in order; "frames", those of one
            video.
    """

    name: str
    samples: pd.DataFrame
    images: Mapping[str, bytes | tuple[bytes, ...]]
    kind: Kind = "image"

    def __post_init__(self) -> None:
        one_of("kind", self.kind, get_args(Kind))

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def categories(self) -> list[str]:
        """In alphabetical order."""
        return sorted(self.samples["category"].unique())

    @property
    def conversations(self) -> bool:
        """Whether the questions about one image_id are the turns of a conversation."""
        return "turn" in self.samples

    @property
    def size(self) -> str:
        """How much there is of it, in words: "1280 questions about 320 images"."""
        count = self.samples["image_id"].nunique()
        what = {"image": "image", "images": "set of images", "frames": "video"}[self.kind]
        several = what if count == 1 else "sets of images" if self.kind == "images" else f"{what}s"
        of = " in conversations" if self.conversations else ""
        return f"{len(self)} question{'' if len(self) == 1 else 's'}{of} about {count} {several}"

    def encoded(self, image_id: str) -> tuple[bytes, ...]:
        """The encoded pictures, in order.

        Raises:
            LabError: no such image_id.
        """
        try:
            found = self.images[image_id]
        except (KeyError, TypeError):
            raise LabError(f"task {quoted(self.name)} has no image_id {image_id!r:.80}") from None
        return (found,) if isinstance(found, bytes) else tuple(found)

    def image(self, image_id: str) -> Image.Image:
        """The decoded picture, of a task that shows one.

        Raises:
            LabError: it cannot be read, there is none, or the task shows several or a video.
        """
        if self.kind != "image":
            what = "several pictures" if self.kind == "images" else "a video"
            raise LabError(f"task {quoted(self.name)} shows {what} for a question, not one picture: use task.shown")
        return self.pictures(image_id)[0]

    def pictures(self, image_id: str) -> list[Image.Image]:
        """The decoded pictures: one, several, or the frames of a video.

        Raises:
            LabError: one cannot be read, or there is no such image_id.
        """
        encoded, decoded = self.encoded(image_id), []
        part = "frame" if self.kind == "frames" else "picture"
        for number, data in enumerate(encoded, 1):
            try:
                decoded.append(read_image(data))
            except LabError as error:
                which = f", {part} {number} of {len(encoded)}" if self.kind != "image" else ""
                raise LabError(f"{self._place(image_id)}{which}: {error}") from None
        return decoded

    def shown(self, image_id: str) -> Shown:
        """What the questions about an image_id show, as `lab.ask` takes it: a picture, a list of them, or a `Video`.

        Every frame of a video is shown.

        Raises:
            LabError: as `pictures`, or frames of different sizes.
        """
        pictures = self.pictures(image_id)
        if self.kind == "image":
            return pictures[0]
        if self.kind == "images":
            return pictures
        try:
            return read_video(pictures, frames=len(pictures), fps=FPS)
        except LabError as error:
            raise LabError(f"{self._place(image_id)}: {error}") from None

    def _place(self, image_id: str) -> str:
        return f"task {quoted(self.name)}, image {quoted(image_id)}"

    def check_images(self) -> None:
        """Decode everything once, so that what is broken is found before hours of work and not after.

        Raises:
            LabError: a picture cannot be read, or the frames of a video are of different sizes.
        """
        for image_id in self.images:
            self.shown(image_id)

    def limited(self, limit: int | None) -> Task:
        """At most `limit` questions of whole images, but at least one image; None for all.

        Every category is there as long as there is room. The draw is fixed: the same limit gives the same questions.
        Conversations stay whole.

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
        return replace(self, samples=samples, images={i: data for i, data in self.images.items() if i in chosen})

    def digest(self) -> str:
        """A fingerprint of every question, answer and picture, and of how they are shown."""
        out = hashlib.sha256(self.samples.to_csv().encode(errors="surrogatepass"))
        if self.kind != "image":
            out.update(self.kind.encode())
        for image_id in self.images:
            out.update(image_id.encode(errors="surrogatepass"))
            encoded = self.encoded(image_id)
            if self.kind != "image":
                out.update(str(len(encoded)).encode())
            for data in encoded:
                out.update(hashlib.sha256(data).digest())
        return out.hexdigest()[:16]


def check_task(task: Any) -> Task:
    """The task, if it is one.

    Raises:
        LabError: something else.
    """
    if not isinstance(task, Task):
        raise LabError(f"task must be a Task, such as load_task('test'), got {task!r}")
    return task
