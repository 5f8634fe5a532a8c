"""What the notebooks teach with: predictions before a measurement, and quizzes that explain.

Everything works by calls as well as by clicks, so a notebook runs from top to bottom with nobody there.
"""

from __future__ import annotations

import html
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import ipywidgets
from IPython.display import display

from illava_lab.errors import LabError, one_of


class Prediction:
    """A guess that the reader commits to before a measurement; then the measured answer appears beside it.

    Nothing tells the answer before: a choice can be changed until it is committed, and what a later cell measures is
    shown when both are there, whichever comes first.

    Args:
        question: what is asked, as plain text, in which `code` between backticks is shown as such.
        choices: the possible outcomes, in which backticks only part words.

    Attributes:
        choice: the guess that was committed to, or None while there is none.

    Raises:
        LabError: fewer than two choices, or one of them twice.
    """

    def __init__(self, question: str, choices: Sequence[str]) -> None:
        if len(choices) < 2 or len(set(choices)) < len(choices):
            raise LabError(f"choices must be two different ones or more, got {list(choices)!r}")
        self.question, self.choices = question, list(choices)
        self.choice: str | None = None
        self._measured: str | None = None
        self._buttons = ipywidgets.RadioButtons(
            options=_options(self.choices), value=None, layout=ipywidgets.Layout(width="max-content")
        )
        self._commit = ipywidgets.Button(
            description="Commit",
            disabled=True,
            tooltip="Say so, and see what is measured",
            button_style="primary",
            layout=ipywidgets.Layout(width="110px"),
        )
        self._outcome = ipywidgets.HTML()
        self._buttons.observe(lambda change: setattr(self._commit, "disabled", change["new"] is None), names="value")
        self._commit.on_click(lambda _: self.choose(self._buttons.value))
        title = ipywidgets.HTML(self._title)
        self._box = ipywidgets.VBox([title, self._buttons, self._commit, self._outcome])

    def choose(self, choice: str) -> None:
        """Commit to a choice: what a click on it and on "Commit" does. It cannot be taken back.

        Raises:
            LabError: no such choice, or another one was committed to.
        """
        one_of("choice", choice, tuple(self.choices))
        if self.choice not in (None, choice):
            raise LabError(f"choice was committed to already: {self.choice!r}")
        self.choice = self._buttons.value = choice
        self._buttons.disabled = self._commit.disabled = True
        self._commit.layout.display = "none"
        self._tell()

    def compare(self, measured: str) -> str:
        """Take what was measured, show it beside the guess, and return both in a sentence.

        While nothing is committed the sentence does not say what was measured.

        Raises:
            LabError: measured is none of the choices.
        """
        one_of("measured", measured, tuple(self.choices))
        self._measured = measured
        self._tell()
        if self.choice is None:
            return "Measured. Commit to your prediction above, and the answer appears beside it."
        return f"Measured: {measured} ({verdict(self.choice, measured)})."

    def show(self) -> None:
        """Display the choices."""
        _shown[self.question] = self
        display(self._data, raw=True)

    def _tell(self) -> None:
        """What the widget says below the choices."""
        said = f"<b>You said:</b> {_marked(self.choice)}" if self.choice else ""
        if self._measured is None:
            self._outcome.value = f"{said}. Now measure: run the cells below." if said else ""
        elif not said:
            self._outcome.value = "It is measured. Commit, and the answer appears here."
        else:
            mark = "&#10003;" if self.choice == self._measured else "&#8800;"
            self._outcome.value = f"{said} &nbsp;{mark}&nbsp; <b>Measured:</b> {_marked(self._measured)}"

    @property
    def _title(self) -> str:
        return f"<b>Predict:</b> {_marked(self.question)}"

    @property
    def _data(self) -> dict[str, Any]:
        """What is displayed. Each choice as a line that unfolds is what readers without a kernel have."""
        lines = []
        for choice in self.choices:
            if self._measured is None:
                lines.append(f"<li>{_marked(choice)}</li>")
                continue
            outcome = f"Measured: {self._measured} ({verdict(choice, self._measured)})."
            lines.append(f"<details><summary>{_marked(choice)}</summary>{_marked(outcome)}</details>")
        listed = "".join(lines)
        page = f"{self._title}{listed if self._measured else f'<ul>{listed}</ul>'}"
        return _data(self._box, page, self.question)


_shown: dict[str, Prediction] = {}


def pages() -> dict[str, str]:
    """Question -> HTML of each prediction that was shown, for readers without a kernel: what is measured by now unfolds
    under each choice. `notebooks/execute.py` stores it in place of what could be shown before the measurement."""
    return {question: guess._data["text/html"] for question, guess in _shown.items()}


def verdict(predicted: str, measured: str) -> str:
    """A guess against what was measured, in a few words."""
    return "as you predicted" if predicted == measured else f"you predicted: {predicted}"


def finding(text: str) -> None:
    """Display what an experiment found as a bold sentence, in the output of the cell that measured it.

    In a cell's output its numbers are those of the run, and it is folded where the outcome must not be seen yet.
    """
    display({"text/plain": text, "text/html": f"<p><b>{html.escape(text)}</b></p>"}, raw=True)


class Question(NamedTuple):
    """One question of a quiz. Every answer comes with the reason why it is right or wrong.

    All of it is plain text, in which `code` between backticks is shown as such.
    """

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
            f"<li>{_marked(question.text)}"
            + "".join(
                f"<details><summary>{_marked(a)}</summary>{_marked(why)}</details>"
                for a, why in question.answers.items()
            )
            + "</li>"
            for question in self.questions
        )
        display(_data(ipywidgets.VBox(boxes), f"<ol>{listed}</ol>", f"Quiz: {len(self.questions)} questions"), raw=True)

    def _box(self, number: int, question: Question) -> ipywidgets.Widget:
        buttons = ipywidgets.RadioButtons(
            options=_options(question.answers), value=None, layout=ipywidgets.Layout(width="max-content")
        )
        reason = ipywidgets.HTML()

        def explain(change: dict) -> None:
            reason.value = _marked(self.answer(number, change["new"]))

        buttons.observe(explain, names="value")
        return ipywidgets.VBox([ipywidgets.HTML(f"<b>{number}. {_marked(question.text)}</b>"), buttons, reason])


def _marked(text: str) -> str:
    """Plain text as HTML: everything is escaped first, so that nothing but `code` between backticks becomes markup."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _options(choices: Iterable[str]) -> list[tuple[str, str]]:
    """(what a button says, choice): buttons show plain text only, so backticks are left out."""
    return [(choice.replace("`", ""), choice) for choice in choices]


def _data(widget: ipywidgets.Widget, page: str, text: str) -> dict[str, Any]:
    """A live widget, and in the same output plain HTML for readers without a kernel."""
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"text/plain": text, "text/html": page, "application/vnd.jupyter.widget-view+json": view}
