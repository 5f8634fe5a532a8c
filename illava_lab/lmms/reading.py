"""What a benchmark shows and asks, as prompts of the lab."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from illava_lab.errors import LabError
from illava_lab.models.images import read_image
from illava_lab.models.video import Video, read_video
from illava_lab.session.messages import Message, Part


def messages_of(said: Any, frames: int) -> list[Message]:
    """Messages of lmms-eval, with their pictures and videos read.

    Args:
        said: dicts of `role` and `content`; content is a text, or a list of dicts of `type` (text, image, video) and
            `text` or `url`, which may be a picture, a path, or for a video its frames.
        frames: how many are taken of a video that is a file.

    Raises:
        LabError: audio, or something else that no model of the lab takes; a picture or a video that cannot be read.
    """
    if not isinstance(said, (list, tuple)) or not said:
        raise LabError(f"a prompt must be a list of messages, got {said!r:.120}")
    return [Message(one["role"], tuple(_parts(one["content"], frames))) for one in said]


def _parts(content: Any, frames: int) -> Iterable[Part]:
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        kind = part["type"]
        if kind == "text":
            if part["text"].strip():
                yield part["text"]
        elif kind == "image":
            yield read_image(part["url"])
        elif kind == "video":
            yield _video(part["url"], frames)
        else:
            raise LabError(f"a prompt may hold text, images and videos, got {kind!r}, which no model here takes")


def _video(shown: Any, frames: int) -> Video:
    if isinstance(shown, Video):
        return shown
    if isinstance(shown, Mapping):
        what = ", ".join(map(str, shown))
        raise LabError(f"a video must be a file or a list of frames, got {what}: parts of a film are not read")
    most = len(shown) if isinstance(shown, (list, tuple)) else frames
    return read_video(shown, frames=min(frames, most))
