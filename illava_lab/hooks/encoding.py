"""One call of a method that encodes images or videos, and the record that its result carries.

What is left of which pictures travels on what the encoding returned. Features made ahead, by `generate` or by hand,
bring it along, whatever was encoded since.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from illava_lab.errors import LabError
from illava_lab.models.layout import Medium
from illava_lab.trace.encoded import EncodedImage
from illava_lab.trace.step import Step
from illava_lab.trace.survivors import Survivors

_RECORD = "_illava_encoded"


@dataclass(frozen=True, eq=False)
class _Record:
    """An entry beside the features, so that whoever moves these to another device (accelerate) takes it along."""

    images: list[EncodedImage]


class TowerCall(Protocol):
    """One call of a vision tower that is reduced, as the connectors see it.

    Attributes:
        steps: its reductions.
        patches: what is left of each row's patches (or cells), CLS left out.
        kept: the fraction of them that is left of each row.
        counts: how many are left of each row, where rows differ in that; else None.
    """

    steps: list[Step]

    @property
    def patches(self) -> Survivors: ...

    @property
    def kept(self) -> float: ...

    @property
    def counts(self) -> list[int] | None: ...


@dataclass(eq=False)
class Encoding:
    """One call of a method that encodes images or videos.

    Attributes:
        tower: the call of the tower inside it, where the tower is reduced.
        images: what it leaves, in the order of the pixels.
        pooled: the projector will be given pooled tokens with holes, and not what the tower left.
    """

    tower: Any = None  # a TowerCall
    images: list[EncodedImage] = field(default_factory=list)
    pooled: bool = False


def note(features: Any, images: list[EncodedImage]) -> None:
    """Write on what an encoding returned what is left of which pictures."""
    if not isinstance(features, tuple):
        features[_RECORD] = _Record(images)


def noted(features: Any, medium: Medium) -> list[EncodedImage]:
    """What `note` wrote.

    Raises:
        LabError: these features were not encoded under an attachment.
    """
    images = recorded(features)
    if images is None:
        raise LabError(
            f"these {medium} features were encoded without the strategy, or taken apart since; pass pixels, or what "
            f"get_{medium}_features returned while it was attached"
        )
    return images


def recorded(features: Any) -> list[EncodedImage] | None:
    """The same, or None."""
    record: _Record | None = getattr(features, _RECORD, None)
    return None if record is None else record.images
