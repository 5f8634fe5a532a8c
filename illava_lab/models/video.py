"""Reading videos: a file, a list of pictures or an array becomes a few frames, spread evenly over time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from illava_lab.errors import LabError
from illava_lab.models.images import ImageLike, read_image

VideoLike: TypeAlias = str | PathLike[str] | np.ndarray | Sequence[ImageLike]
SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


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


ImageOrVideo = ImageLike | Video


def read_video(source: VideoLike, frames: int = 8, fps: float = 24.0) -> Video:
    """Sample frames evenly over time.

    The duration is cut into `frames` equal spans, and the frame shown in the middle of each is taken; of a source with
    a constant frame rate, `frames` = all takes each once. Files are read with PyAV
    (`pip install "illava-lab[video]"`), animated GIF, WebP and PNG with Pillow; decoding stops after the last frame
    that is needed.

    Args:
        source: a file, a list of images (`read_image` says which), or an array (frames, height, width, 3) of 8 bits.
        frames: how many to take, from 1 to all.
        fps: frames per second of a list or an array, which carry no times; a file knows its own.

    Raises:
        LabError: no such file, an empty or broken one, a still picture, pictures of different sizes, an array of
            another shape or type, more frames than there are, or PyAV is needed and not installed.
    """
    if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
        raise LabError(f"frames must be a whole number of at least 1, got {frames!r}")
    if not fps > 0:
        raise LabError(f"fps must be above 0, got {fps!r}")
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or source.shape[-1] != 3 or source.dtype != np.uint8:
            raise LabError(
                f"a video array must be (frames, height, width, 3) of uint8, got {source.shape} of {source.dtype}"
            )
        return _from_pictures(list(source), frames, fps, "the array")
    if isinstance(source, (list, tuple)):
        return _from_pictures([np.asarray(read_image(image)) for image in source], frames, fps, "the list")
    if not isinstance(source, (str, PathLike)):
        raise LabError(f"a video must be a path, a list of images or an array, got {type(source).__name__}")
    path = Path(source)
    if not path.is_file():
        raise LabError(f"no video file at {str(path)!r}")
    if path.stat().st_size == 0:
        raise LabError(f"{path} is empty")
    try:
        opened = Image.open(path)
    except UnidentifiedImageError:
        return _from_film(path, frames)
    with opened:
        return _from_animation(opened, frames, path)


def _from_pictures(pictures: list[np.ndarray], frames: int, fps: float, name: str) -> Video:
    starts = [index / fps for index in range(len(pictures))]
    chosen = _sample(starts, len(pictures) / fps, frames, name)
    return _video([pictures[i] for i in chosen], chosen, starts, len(pictures) / fps, name)


def _from_animation(image: Image.Image, frames: int, path: Path) -> Video:
    if getattr(image, "n_frames", 1) == 1:
        raise LabError(f"{path} is a still picture, not a video")
    try:
        starts, duration = [], 0.0
        for frame in ImageSequence.Iterator(image):
            starts.append(duration)
            frame.load()  # WebP tells how long a frame is shown only then
            # Browsers show a frame that gives no duration for a tenth of a second.
            duration += (frame.info.get("duration") or 100) / 1000
        chosen = _sample(starts, duration, frames, str(path))
        pictures = []
        for index in chosen:
            image.seek(index)
            pictures.append(np.asarray(read_image(image.copy())))
    except (OSError, SyntaxError, EOFError) as error:
        raise LabError(f"{path} cannot be read: {error}") from None
    return _video(pictures, chosen, starts, duration, str(path))


def _from_film(path: Path, frames: int) -> Video:
    try:
        import av
    except ImportError:
        raise LabError(f'reading {path} needs PyAV: pip install "illava-lab[video]"') from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise LabError(f"{path} has no pictures in it")
            stream = container.streams.video[0]
            unit = stream.time_base or Fraction(1, 1)
            packets = [(p.pts if p.pts is not None else p.dts, p.duration) for p in container.demux(stream) if p.size]
            times = sorted(time for time, _ in packets if time is not None)
            if not times or len(times) < stream.frames:
                raise LabError(f"{path} breaks off: {len(times)} of {stream.frames or 'its'} frames are there")
            last = packets[-1][1] or (times[-1] - times[0]) // max(len(times) - 1, 1) or 1
            starts = [float((time - times[0]) * unit) for time in times]
            duration = float((times[-1] - times[0] + last) * unit)
            chosen = _sample(starts, duration, frames, str(path))
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            pictures = _decoded(container.decode(video=0), chosen)
    except av.FFmpegError as error:
        raise LabError(f"{path} cannot be read as a video: {error.strerror}") from None
    if len(pictures) < len(chosen):
        raise LabError(f"{path} breaks off after {len(pictures)} of the {frames} wanted frames")
    return _video(pictures, chosen, starts, duration, str(path))


def _decoded(film: Iterable[Any], chosen: list[int]) -> list[np.ndarray]:
    """The chosen frames (ascending indices, possibly repeated) of a decoder, upright."""
    pictures: list[np.ndarray] = []
    for index, frame in enumerate(film):
        if index in chosen:
            # A phone held sideways stores a rotation, counter-clockwise in degrees.
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))
            pictures += [np.ascontiguousarray(upright)] * chosen.count(index)
        if index >= chosen[-1]:
            break
    return pictures


def _sample(starts: list[float], duration: float, frames: int, name: str) -> list[int]:
    """Indices of the frames that are shown in the middle of `frames` equal spans of time."""
    if frames > len(starts):
        raise LabError(f"frames must be at most {len(starts)}, which is all that {name} has, got {frames}")
    middles = (np.arange(frames) + 0.5) * duration / frames
    return (np.searchsorted(starts, middles, side="right") - 1).tolist()


def _video(pictures: list[np.ndarray], chosen: list[int], starts: list[float], duration: float, name: str) -> Video:
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        named = " and ".join(f"{width} x {height}" for height, width, _ in sorted(sizes)[:2])
        raise LabError(f"the frames of {name} must be of one size, got {named}")
    return Video(np.stack(pictures), tuple(starts[i] for i in chosen), duration)
