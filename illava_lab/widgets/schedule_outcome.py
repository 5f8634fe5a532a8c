"""What a schedule leaves of one picture, and what the model then says: the schedule designer beside its costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from illava_lab.errors import LabError
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Stage
from illava_lab.models.families import describe
from illava_lab.models.images import ImageLike
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.answer import Answer
from illava_lab.session.lab import Lab
from illava_lab.views.pictures import after_stage, seen_image, side_by_side, token_picture
from illava_lab.views.seen import SIDE, webp


class Outcome:
    """Picture and answer under a schedule, beside the bare model's answer. Every schedule is asked once.

    Attributes:
        strategy: what reduces.
        bare: the answer without reduction.

    Raises:
        LabError: as `Lab.ask`.
    """

    def __init__(self, lab: Lab, image: ImageLike, question: str, strategy: str | Strategy) -> None:
        self.strategy = make_strategy(strategy)
        self._lab, self._image, self.question = lab, image, question
        self.bare = lab.ask(image, question)
        self._seen = seen_image(lab, image)
        self._answers: dict[str, Answer] = {}

    def answer(self, schedule: Schedule) -> Answer:
        """What the model says.

        Raises:
            LabError: the strategy cannot follow this schedule.
        """
        key = repr(schedule)
        if key not in self._answers:
            self._answers[key] = self._lab.ask(self._image, self.question, self.strategy, schedule=schedule)
        return self._answers[key]

    def panels(self, schedule: Schedule) -> list[tuple[str, Image.Image]]:
        """Titles and pictures: what the model sees, and its tokens behind the encoder and in the last LLM layer."""
        out = [("what the model sees", self._seen)]
        for stage, name in (("encoder", "behind the image encoder"), ("llm", "in the last LLM layer")):
            sources = after_stage(self.answer(schedule).trace, stage)
            out.append((f"{name}: {len(sources.anchor)} tokens", token_picture(self._seen, sources.crop(0))))
        return out

    def words(self, schedule: Schedule) -> str:
        """Question and both answers, each with the probability of its first word."""
        now = self.answer(schedule)
        same = "the same as" if now.text == self.bare.text else "another one than"
        return (
            f"{self.question} → “{now.text}”{_odds(now)} with {self.strategy.label}, {same} without reduction: "
            f"“{self.bare.text}”{_odds(self.bare)}"
        )

    def figure(self, schedule: Schedule) -> Figure:
        """The pictures by matplotlib, with the answers as their title."""
        return side_by_side(self.panels(schedule), self.words(schedule), size=2.9)

    def catalog(self, places: Sequence[tuple[Stage, int]]) -> dict[str, Any]:
        """What a page has to know beforehand: `method`, the picture as the model sees it (`seen`), and for each of the
        places why the strategy cannot reduce there, or None (`refused`)."""
        refused: list[str | None] = []
        for stage, layer in places:
            try:
                single_cut(stage, layer, 0.5).check(describe(self._lab.model), self.strategy)
                refused.append(None)
            except LabError as error:
                refused.append(str(error))
        seen = {"title": "what the model sees", "address": webp(self._seen)}
        return {"method": self.strategy.label, "seen": seen, "refused": refused}

    def page(self, schedule: Schedule, side: int = SIDE) -> dict[str, Any]:
        """For a page: `words`, and `panels`, each with title and address.

        Args:
            side: pixels of each picture, at most `SIDE`.

        Raises:
            LabError: the strategy cannot follow this schedule.
        """
        panels = self.panels(schedule)[1:]
        for _, picture in panels:
            picture.thumbnail((side, side))
        addresses = [{"title": title, "address": webp(picture)} for title, picture in panels]
        return {"words": self.words(schedule), "panels": addresses}


def single_cut(stage: Stage, layer: int, keep: float) -> Schedule:
    """The schedule of one layer alone."""
    return Schedule(encoder={layer: keep}) if stage == "encoder" else Schedule(llm={layer: keep})


def _odds(answer: Answer) -> str:
    return f" ({answer.words[0][0].probability:.0%})" if answer.words else ""
