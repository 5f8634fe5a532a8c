"""What lmms-eval's ``--model_args`` may say."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from dataclasses import dataclass, fields
from typing import Any

from illava_lab.arguments import schedule as read_schedule
from illava_lab.errors import LabError
from illava_lab.method.strategy import Strategy
from illava_lab.schedules.budget import Budget, choose
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import check_count, check_flag
from illava_lab.session.lab import Lab
from illava_lab.session.load import load


@dataclass(frozen=True)
class ModelArguments:
    """The words of `il.load` and `Lab.ask`, as lmms-eval hands them over: numbers and booleans are converted.

    Attributes:
        pretrained: as `source` of `il.load`.
        strategy, keep, flops, preset, graphs: as in `Lab.ask`.
        schedule: JSON, as ``--schedule`` of ``illava-lab ask``.
        device: "cuda" where there is one if nobody says; dtype, device_map, quantize, revision: as in `il.load`.
        frames: taken of a video that is a file.
        batch_size: prompts at once.
    """

    pretrained: str = "embedded"
    strategy: str | None = None
    keep: float | None = None
    flops: float | None = None
    preset: str | None = None
    schedule: Any = None
    graphs: bool = False
    device: str | None = None
    dtype: str = "float32"
    device_map: str | None = None
    quantize: str | None = None
    revision: Any = None
    frames: int = 8
    batch_size: Any = 1

    @classmethod
    def of(cls, given: dict[str, Any]) -> ModelArguments:
        """Read what was given.

        Raises:
            LabError: a word that is none of these, or a value that cannot be, as far as that is known without a model.
        """
        names = [field.name for field in fields(cls)]
        unknown = [name for name in given if name not in names]
        if unknown:
            raise LabError(f"model_args has no {unknown[0]}; there are {', '.join(names)}")
        out = cls(**given)
        check_count("frames", out.frames)
        out.batch()
        check_flag("graphs", out.graphs)
        out.chosen()
        return out

    def batch(self) -> int:
        """Prompts at once, which lmms-eval gives as a number or a text.

        Raises:
            LabError: it is no whole number, as "auto" is none.
        """
        size = self.batch_size
        return check_count("batch_size", int(size) if isinstance(size, str) and size.isdecimal() else size)

    def chosen(self) -> tuple[Strategy, Budget]:
        """What reduces, and by how much.

        Raises:
            LabError: as `Lab.ask`.
        """
        return choose(self.strategy, self.keep, self.flops, self.preset, self._schedule())

    def _schedule(self) -> Schedule | None:
        if self.schedule is None:
            return None
        given = self.schedule if isinstance(self.schedule, str) else json.dumps(self.schedule)
        try:
            return Schedule(**read_schedule(given))
        except ArgumentTypeError as error:
            raise LabError(f"schedule: {error}") from None

    def lab(self) -> Lab:
        """The model.

        Raises:
            LabError: as `il.load`.
        """
        import torch

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        source = None if self.pretrained in (None, "embedded") else str(self.pretrained)
        revision = None if self.revision is None else str(self.revision)
        return load(source, device, self.dtype, device_map=self.device_map, quantize=self.quantize, revision=revision)
