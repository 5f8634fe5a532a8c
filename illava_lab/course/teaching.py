"""What the notebooks teach with: predictions before a measurement, and quizzes that explain.

Everything works by calls as well as by clicks, so a notebook runs from top to bottom with nobody there.
"""

from __future__ import annotations

import html
import random
from collections.abc import Sequence
from typing import NamedTuple

import ipywidgets
from IPython.display import display

from illava_lab.errors import LabError, one_of


class Prediction:
    """A guess that the reader makes before a measurement, and that a later cell compares with it.

    Args:
        question: what is asked.
        choices: the possible outcomes.

    Attributes:
        choice: the guess, or None while there is none.

    Raises:
        LabError: fewer than two choices, or one of them twice.
    """

    def __init__(self, question: str, choices: Sequence[str]) -> None:
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise LabError(f"choices must be two different ones or more, got {list(choices)!r}")
        self.question, self.choices = question, list(choices)
        self._buttons = ipywidgets.RadioButtons(
            options=self.choices, value=None, layout=ipywidgets.Layout(width="max-content")
        )

    @property
    def choice(self) -> str | None:
        return self._buttons.value

    def choose(self, choice: str) -> None:
        """What a click does.

        Raises:
            LabError: no such choice.
        """
        one_of("choice", choice, tuple(self.choices))
        self._buttons.value = choice

    def compare(self, measured: str) -> str:
        """The guess beside the outcome, in a sentence.

        Raises:
            LabError: measured is none of the choices.
        """
        one_of("measured", measured, tuple(self.choices))
        if self.choice is None:
            return f"Measured: {measured}. (You made no prediction; choose one above and run this cell again.)"
        verdict = "as you predicted" if self.choice == measured else f"you predicted: {self.choice}"
        return f"Measured: {measured} ({verdict})."

    def show(self) -> None:
        """Display the choices."""
        title = f"<b>Predict:</b> {html.escape(self.question)}"
        listed = "".join(f"<li>{html.escape(choice)}</li>" for choice in self.choices)
        _show(ipywidgets.VBox([ipywidgets.HTML(title), self._buttons]), f"{title}<ul>{listed}</ul>", self.question)


class Question(NamedTuple):
    """One question of a quiz. Every answer comes with the reason why it is right or wrong."""

    text: str
    right: tuple[str, str]
    wrong: Sequence[tuple[str, str]]

    @property
    def answers(self) -> dict[str, str]:
        """Answer -> explanation, in an order that does not give the right one away and is always the same."""
        pairs = [(self.right[0], f"Right. {self.right[1]}"), *((text, f"No. {why}") for text, why in self.wrong)]
        random.Random(self.text).shuffle(pairs)
        return dict(pairs)


class Quiz:
    """Questions with an explanation for each answer.

    Raises:
        LabError: no question, or one with the same answer twice.
    """

    def __init__(self, *questions: Question) -> None:
        if not questions:
            raise LabError("a quiz needs at least one question")
        for question in questions:
            if len(question.answers) != 1 + len(question.wrong) or not question.wrong:
                raise LabError(f"the answers to {question.text!r} must be two different ones or more")
        self.questions = questions

    def answer(self, number: int, text: str) -> str:
        """The explanation of an answer to question `number` (from 1): what a click shows.

        Raises:
            LabError: no such question or answer.
        """
        if not 1 <= number <= len(self.questions):
            raise LabError(f"number must be between 1 and {len(self.questions)}, got {number!r}")
        answers = self.questions[number - 1].answers
        one_of("answer", text, tuple(answers))
        return answers[text]

    def show(self) -> None:
        """Display the quiz. Without a kernel, explanations unfold under their answers."""
        boxes = [self._box(number, question) for number, question in enumerate(self.questions, start=1)]
        listed = "".join(
            f"<li>{html.escape(question.text)}"
            + "".join(
                f"<details><summary>{html.escape(a)}</summary>{html.escape(why)}</details>"
                for a, why in question.answers.items()
            )
            + "</li>"
            for question in self.questions
        )
        _show(ipywidgets.VBox(boxes), f"<ol>{listed}</ol>", f"Quiz: {len(self.questions)} questions")

    def _box(self, number: int, question: Question) -> ipywidgets.Widget:
        buttons = ipywidgets.RadioButtons(
            options=list(question.answers), value=None, layout=ipywidgets.Layout(width="max-content")
        )
        reason = ipywidgets.HTML()

        def explain(change: dict) -> None:
            reason.value = html.escape(self.answer(number, change["new"]))

        buttons.observe(explain, names="value")
        return ipywidgets.VBox([ipywidgets.HTML(f"<b>{number}. {html.escape(question.text)}</b>"), buttons, reason])


def _show(widget: ipywidgets.Widget, page: str, text: str) -> None:
    """Display a live widget, and in the same output plain HTML for readers without a kernel."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    display({"text/plain": text, "text/html": page, "application/vnd.jupyter.widget-view+json": view}, raw=True)
