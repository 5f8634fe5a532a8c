"""Reading videos: a file, a list of pictures or an array becomes a few frames, spread evenly over time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from illava_lab.errors import LabError
from illava_lab.models.animations import MOST_FRAME_PIXELS, animation_frames, animation_times
from illava_lab.models.films import film_frames, film_times, opened
from illava_lab.models.images import ImageLike, check_size, is_array, open_picture, pixels_of, read_image, reason
from illava_lab.paths import is_file, quoted

if TYPE_CHECKING:
    from torch import Tensor

VideoLike: TypeAlias = "str | os.PathLike[str] | np.ndarray | Tensor | Sequence[ImageLike]"
SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
MOST_TAKEN = 1_000_000_000
"""Pixels of all frames that are taken: three gigabytes."""
FPS = (1e-6, 1e6)


@dataclass(frozen=True, eq=False)
class Video:
    """Sampled frames, ready for `Lab.inputs`, `Lab.answer` and `Lab.ask` in the place of an image.

    Attributes:
        frames: (frames, height, width, 3), 8-bit RGB.
        seconds: when each frame is shown.
        duration: of the whole source, in seconds.
    """

    frames: np.ndarray
    seconds: tuple[float, ...]
    duration: float

    @property
    def fps(self) -> float:
        """Sampled frames per second."""
        return len(self.frames) / self.duration

    def __len__(self) -> int:
        return len(self.frames)


ImageOrVideo: TypeAlias = "ImageLike | Video"


def read_video(source: VideoLike, frames: int = 8, fps: float = 24.0) -> Video:
    """Sample frames evenly over time.

    The duration is cut into `frames` equal spans, and the frame shown in the middle of each is taken; of a source with
    a constant frame rate, `frames` = all takes each once. Files are read with PyAV
    (`pip install "illava-lab[video]"`), animated GIF, WebP, PNG and AVIF with Pillow; decoding stops after the last
    frame that is needed.

    Args:
        source: a file, a list of images (`read_image` says which), or an array (frames, height, width, 3) of 8 bits.
        frames: how many to take, from 1 to all. A frame may have up to 33 million pixels (8K), all that are taken
            together a billion.
        fps: frames per second of a list or an array, which carry no times; a file knows its own.

    Raises:
        LabError: no such file, an empty or broken one, a still picture, pictures of different sizes, an array of
            another shape or type, more frames than there are, frames that are too large, a file that is cut off as far
            as it can be told, or PyAV is needed and not installed.
    """
    if isinstance(frames, bool) or not isinstance(frames, Integral) or frames < 1:
        raise LabError(f"frames must be a whole number of at least 1, got {frames!r}")
    frames, fps = int(frames), _rate(fps)
    if is_array(source):
        return _from_array(source, frames, fps)
    if isinstance(source, (list, tuple)):
        return _from_list(source, frames, fps)
    if not isinstance(source, (str, os.PathLike)):
        raise LabError(f"a video must be a path, a list of images or an array, got {type(source).__name__}")
    name = quoted(source)
    if not is_file(source):
        raise LabError(f"no video file at {name}")
    return _from_file(Path(os.fsdecode(source)), frames, name)


def _rate(fps: Any) -> float:
    try:
        rate = math.nan if isinstance(fps, (bool, str, bytes)) else float(fps)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        rate = math.nan
    if not FPS[0] <= rate <= FPS[1]:
        raise LabError(f"fps must be above 0, from {FPS[0]:g} to {FPS[1]:.0f}, got {fps!r:.60}")
    return rate


def _from_array(source: Any, frames: int, fps: float) -> Video:
    array = pixels_of(source, 4, "a video array")
    starts, duration = _steady(len(array), fps)
    chosen = _sample(starts, duration, frames, "the array")
    _check_taken(array.shape[2], array.shape[1], frames, "the array")
    return _video([array[i] for i in chosen], chosen, starts, duration, "the array")


def _from_list(source: Sequence[ImageLike], frames: int, fps: float) -> Video:
    starts, duration = _steady(len(source), fps)
    # Every picture has to be one, but only those that are taken stay in memory.
    chosen = _sample(starts, duration, frames, "the list") if frames <= len(source) else []
    taken = {}
    for index, image in enumerate(source):
        picture = read_image(image)
        if index in chosen:
            _check_taken(*picture.size, frames, "the list")
            taken[index] = np.asarray(picture)
    chosen = _sample(starts, duration, frames, "the list")
    return _video([taken[i] for i in chosen], chosen, starts, duration, "the list")


def _steady(count: int, fps: float) -> tuple[list[float], float]:
    return [index / fps for index in range(count)], count / fps


def _from_file(path: Path, frames: int, name: str) -> Video:
    try:
        size = path.stat().st_size
        if size == 0:
            raise LabError(f"{name} is empty")
        # TGA has no sign of its own, and films can look like one.
        with path.open("rb") as stream, open_picture(stream, leave_out=("TGA",)) as image:
            return _from_animation(image, frames, name)
    except UnidentifiedImageError:
        return _from_film(path, size, frames, name)
    except LabError:
        raise
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise LabError(f"{name} cannot be read: {reason(error)}") from None


def _from_animation(image: Image.Image, frames: int, name: str) -> Video:
    starts, duration = animation_times(image, name)
    chosen = _sample(starts, duration, frames, name)
    _check_taken(*image.size, len(set(chosen)), name)
    return _video(animation_frames(image, chosen, name), chosen, starts, duration, name)


def _from_film(path: Path, size: int, frames: int, name: str) -> Video:
    with opened(path, name) as container:
        starts, duration = film_times(container, size, name)
        chosen = _sample(starts, duration, frames, name)
        stream = container.streams.video[0]
        _check_taken(stream.width or 1, stream.height or 1, frames, name)
    with opened(path, name) as container:
        pictures = film_frames(container, chosen, name)
    return _video(pictures, chosen, starts, duration, name)


def _check_taken(width: int, height: int, frames: int, name: str) -> None:
    check_size(width, height, f"a frame of {name}", MOST_FRAME_PIXELS)
    if width * height * frames > MOST_TAKEN:
        raise LabError(
            f"{frames} frames of {width} x {height} pixels are more than the {MOST_TAKEN // 10**6} million pixels that "
            f"are taken of {name}: take at most {MOST_TAKEN // (width * height)}"
        )


def _sample(starts: list[float], duration: float, frames: int, name: str) -> list[int]:
    """Indices of the frames that are shown in the middle of `frames` equal spans of time."""
    if frames > len(starts):
        raise LabError(f"frames must be at most {len(starts)}, which is all that {name} has, got {frames}")
    middles = (np.arange(frames) + 0.5) * duration / frames
    return (np.searchsorted(starts, middles, side="right") - 1).tolist()


def _video(pictures: Iterable[np.ndarray], chosen: list[int], starts: list[float], duration: float, name: str) -> Video:
    pictures = list(pictures)
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        named = " and ".join(f"{width} x {height}" for height, width, _ in sorted(sizes)[:2])
        raise LabError(f"the frames of {name} must be of one size, got {named}")
    return Video(np.stack(pictures), tuple(starts[i] for i in chosen), duration)
