"""Around the methods that encode images and videos: what they leave is noted on what they return."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.changes import Changes
from illava_lab.hooks.encoding import Encoding, note
from illava_lab.models.layout import Medium
from illava_lab.trace.encoded import EncodedImage

ON_HOST = ("image_sizes", "batch_num_images")  # from which the host works out how pictures were cut


class Connector(Protocol):
    """How the rows of a tower become placeholders, in one medium."""

    def install(self, changes: Changes) -> None:
        """Hook what lies between the tower and the prompt."""
        ...

    def images(self, encoding: Encoding, features: Any, given: dict[str, Any]) -> list[EncodedImage]:
        """What an encoding left, in the order of the pixels.

        Args:
            features: what it returned; given: the arguments it was called with, by name.
        """
        ...


def watch(changes: Changes, attachment: Attachment, medium: Medium, connector: Connector) -> None:
    """Note what every encoding of a medium leaves."""
    base: nn.Module = attachment.anatomy.base
    connector.install(changes)
    changes.method(
        base, attachment.anatomy.media[medium].encode, functools.partial(_encode, attachment, medium, connector)
    )


def _encode(
    attachment: Attachment, medium: Medium, connector: Connector, original: Callable, *args: Any, **kwargs: Any
) -> Any:
    running = attachment.running
    if running.encoding is not None:  # Qwen3-VL encodes a video by its method for images
        return original(*args, **kwargs)
    signature = inspect.signature(original)
    given = signature.bind(*args, **kwargs).arguments
    _refuse_other_features(attachment, given)
    encoding = Encoding()
    with running.during("encoding", encoding):
        features = original(
            *map(_brought, signature.parameters, args), **{name: _brought(name, x) for name, x in kwargs.items()}
        )
    images = connector.images(encoding, features, given)
    note(features, images)
    if running.call is not None:
        running.call.encoded[medium] = images
    return features


def _brought(name: str, value: Any) -> Any:
    """Sizes on the host, before the tower runs: behind it, each time one is read the host would wait for the tower."""
    return value.cpu() if name in ON_HOST and isinstance(value, Tensor) else value


def _refuse_other_features(attachment: Attachment, given: dict[str, Any]) -> None:
    """The schedule was checked against the layer that the configuration names."""
    if not attachment.schedule.reduces:
        return
    config = attachment.anatomy.base.config
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        wanted = given.get(name)
        if wanted is not None and wanted != getattr(config, name, wanted):
            raise LabError(
                f"{name} must be the configuration's, {getattr(config, name)!r}, while a strategy is attached, "
                f"got {wanted!r}"
            )
