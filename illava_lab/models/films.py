"""Films (mp4, webm, mkv, avi, ...), read with PyAV: when each frame is shown, and the wanted ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from illava_lab.errors import LabError
from illava_lab.models.animations import MOST_FRAME_PIXELS
from illava_lab.models.images import check_size, reason

PATIENCE = 10.0
"""Seconds that a film may take to be opened, and to give the next packet."""
DURATION_IS_WRITTEN = ("matroska", "flv")
"""Containers whose head says how long the film is; of others PyAV cannot tell whether it was estimated."""
NO_FILMS = ("image2", "tty", "hls", "concat", "dash", "lavfi")
"""What FFmpeg makes moving pictures of besides: single pictures, text, and lists that name other files."""
SLACK = 0.15
"""Seconds and frames by which a container may be wrong about that."""


@contextmanager
def opened(path: Path, name: str) -> Iterator[Any]:
    """A film's container.

    Raises:
        LabError: PyAV is not installed, or whatever goes wrong within.
    """
    try:
        import av
    except ImportError:
        raise LabError(f'reading {name} needs PyAV: pip install "illava-lab[video]"') from None
    try:
        # Absolute, so that no name is taken for a protocol; titles are often not in the encoding that they should have.
        where, only = str(path.absolute()), {"protocol_whitelist": "file"}
        with av.open(where, metadata_errors="replace", timeout=PATIENCE, container_options=only) as container:
            kind = container.format.name
            if kind.startswith(NO_FILMS) or kind.endswith("_pipe"):
                raise LabError(f"{name} is not a video in a format that can be read, such as mp4, webm, mkv, avi, GIF")
            if not container.streams.video:
                raise LabError(f"{name} has no pictures in it")
            yield container
    except LabError:
        raise
    except Exception as error:
        raise LabError(f"{name} cannot be read as a video: {reason(error)}") from None


def film_times(container: Any, size: int, name: str) -> tuple[list[float], float]:
    """When each frame starts, in seconds from the first one, and when the last one ends. Reads the film once through.

    Args:
        size: of the file, in bytes.

    Raises:
        LabError: the film breaks off, or claims more than the file can hold.
    """
    stream = container.streams.video[0]
    unit = stream.time_base or Fraction(1, 1)
    packets: list[tuple[int | None, int]] = []
    corrupt: list[bool] = []
    read, end = 0, Fraction(0)
    for packet in container.demux():
        if not packet.size:
            continue
        read += packet.size
        if read > 2 * size + 2**20:
            raise LabError(f"{name} cannot be read as a video: it claims more frames than the file can hold")
        time = packet.pts if packet.pts is not None else packet.dts
        if time is not None and packet.time_base:
            end = max(end, (time + (packet.duration or 0)) * packet.time_base)
        if packet.stream.index == stream.index:
            packets.append((time, packet.duration or 0))
            corrupt.append(packet.is_corrupt)
    times = sorted(time for time, _ in packets if time is not None)
    if not times or len(times) < stream.frames:
        raise LabError(f"{name} breaks off: {len(times)} of {stream.frames or 'its'} frames are there")
    last = packets[-1][1] or (times[-1] - times[0]) // max(len(times) - 1, 1) or 1
    starts = [float((time - times[0]) * unit) for time in times]
    duration = float((times[-1] - times[0] + last) * unit)
    kind, written = container.format.name, container.duration
    # FFmpeg forgets what an ASF says of its duration if the file is shorter than it says.
    cut = any(corrupt[-3:]) or (kind.startswith("asf") and written is None)
    if kind.startswith(DURATION_IS_WRITTEN) and written is not None:
        cut = cut or written / 1e6 - float(end) > SLACK + duration / len(times)
    if cut:
        raise LabError(f"{name} breaks off: after {duration:.1f} seconds the rest is missing")
    return starts, duration


def film_frames(container: Any, chosen: list[int], name: str) -> list[np.ndarray]:
    """The chosen frames (ascending indices, possibly repeated), upright, each (height, width, 3) of uint8.

    Raises:
        LabError: the film breaks off before the last of them, or they are too large.
    """
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    # The decoder would ask for the memory before anybody here sees a size.
    stream.codec_context.options = {"max_pixels": str(MOST_FRAME_PIXELS)}
    pictures = _decoded(container.decode(video=0), chosen, name)
    if len(pictures) < len(chosen):
        raise LabError(f"{name} breaks off after {len(pictures)} of the {len(chosen)} wanted frames")
    return pictures


def _decoded(film: Iterable[Any], chosen: list[int], name: str) -> list[np.ndarray]:
    pictures: list[np.ndarray] = []
    for index, frame in enumerate(film):
        if index in chosen:
            check_size(frame.width, frame.height, f"a frame of {name}", MOST_FRAME_PIXELS)
            # A phone held sideways stores a rotation, counter-clockwise in degrees.
            upright = np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))
            pictures += [np.ascontiguousarray(upright)] * chosen.count(index)
        if index >= chosen[-1]:
            break
    return pictures
