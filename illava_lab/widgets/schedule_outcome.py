"""What a schedule leaves of one picture, and what the model then says: the schedule designer beside its costs."""

from __future__ import annotations

import ipywidgets
from matplotlib.figure import Figure
from PIL import Image

from illava_lab.errors import LabError
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.images import ImageLike
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.answer import Answer
from illava_lab.session.lab import Lab
from illava_lab.views.pictures import after_stage, seen_image, side_by_side, token_picture
from illava_lab.views.seen import webp
from illava_lab.views.words import as_html

WIDTH = 250  # pixels of each picture on the page


class Outcome:
    """Picture and answer under a schedule, beside the bare model's answer. Every schedule is asked once.

    Attributes:
        widget: what is displayed; `show` fills it.

    Raises:
        LabError: as `Lab.ask`.
    """

    def __init__(self, lab: Lab, image: ImageLike, question: str, strategy: str | Strategy) -> None:
        self.strategy = make_strategy(strategy)
        self._lab, self._image, self.question = lab, image, question
        self.bare = lab.ask(image, question)
        self._seen = seen_image(lab, image)
        self._answers: dict[str, Answer] = {}
        self.widget = ipywidgets.HTML()

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

    def show(self, schedule: Schedule) -> None:
        """Fill the widget; a schedule that the strategy refuses is said with its reason.

        Until the model has answered, what was there before is pale.
        """
        if repr(schedule) not in self._answers:
            self.widget.value = f'<div style="opacity:0.4">{self.widget.value}</div>'
        try:
            panels, words = self.panels(schedule), self.words(schedule)
        except LabError as error:
            self.widget.value = f"<b>{as_html(self.strategy.label)} cannot do that:</b> {as_html(error)}"
            return
        figures = "".join(
            f'<figure style="margin:0"><figcaption>{as_html(title)}</figcaption>'
            f'<img src="{webp(picture)}" alt="{as_html(title)}" width="{WIDTH}"></figure>'
            for title, picture in panels
        )
        row = '<div style="display:flex;flex-wrap:wrap;gap:10px;line-height:1.5">'
        self.widget.value = f"<b>{as_html(words)}</b>{row}{figures}</div>"


def _odds(answer: Answer) -> str:
    return f" ({answer.words[0][0].probability:.0%})" if answer.words else ""
