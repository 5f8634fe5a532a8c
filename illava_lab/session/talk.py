"""Several conversations at once, as the questions of a task may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from illava_lab.errors import LabError
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.session.asked import check_question
from illava_lab.session.lab import Lab
from illava_lab.session.turn import LONGEST, new_tokens, next_answers, next_inputs, text_of


def talk(lab: Lab, shown: Sequence[Any], questions: Sequence[Sequence[str]]) -> list[list[str]]:
    """Hold several conversations, their turns side by side; inside an `attach` block, with that reduction.

    Each goes as in `il.chat`: what it shows is reduced once, at its first question, and the model hears its own
    answers. Models with positions on several axes (Qwen-VL) hold one after the other.

    Args:
        shown: of each conversation, as in `Lab.inputs`.
        questions: of each its turns, at least one.

    Returns:
        Of each its answers.

    Raises:
        LabError: as `Lab.inputs`; or a conversation for which the model has too few positions.
    """
    for question in (question for turns in questions for question in turns):
        check_question(question)
    if not all(questions):
        raise LabError("questions must hold at least one for each conversation")
    if hasattr(lab.model.model, "get_rope_index") and len(shown) > 1:
        return [talk(lab, [one], [turns])[0] for one, turns in zip(shown, questions, strict=True)]
    answers: list[list[str]] = [[] for _ in questions]
    going, said = list(range(len(questions))), None
    with one_at_a_time(lab.model):
        while going:
            turn = len(answers[going[0]])
            inputs = next_inputs(lab, shown, [questions[talk][turn] for talk in going], said)
            said = next_answers(lab, inputs, said, LONGEST)
            for number, tokens in zip(going, new_tokens(said, inputs), strict=True):
                answers[number].append(text_of(lab, tokens))
            rows = [row for row, number in enumerate(going) if len(questions[number]) > turn + 1]
            if rows and len(rows) < len(going):
                said = said.only(rows)
            going = [going[row] for row in rows]
    return answers
