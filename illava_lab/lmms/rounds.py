"""Rounds: a task that asks again, with the earlier answers before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from illava_lab.hooks.turns import one_at_a_time
from illava_lab.lmms.generation import Generation
from illava_lab.lmms.reading import messages_of
from illava_lab.lmms.requests import Request
from illava_lab.session.lab import Lab
from illava_lab.session.messages import Message, Prompt, message_inputs
from illava_lab.session.turn import Said, new_tokens, next_answers, next_inputs, text_of


def converse(
    lab: Lab, requests: Sequence[Request], prompts: Sequence[Prompt], generation: Generation, frames: int
) -> list[list[str]]:
    """Answers to all rounds of some documents, side by side; inside an `attach` block, with that reduction.

    A round whose prompt goes on from what was said in the round before is a turn of a conversation, as in `il.chat`:
    what it shows was reduced once, at the first question. Any other is a prompt by itself.

    Args:
        prompts: of the first round.

    Raises:
        LabError: as `message_inputs`; or a conversation for which the model has too few positions.
    """
    answers: list[list[str]] = [[] for _ in requests]
    information: list[Any] = [None] * len(requests)
    going, asked, said = list(range(len(requests))), [list(prompt) for prompt in prompts], None
    with one_at_a_time(lab.model):
        while going:
            questions = [prompt[-1].text for prompt in asked]
            inputs = message_inputs(lab, asked) if said is None else next_inputs(lab, [], questions, said)
            said = next_answers(lab, inputs, said, generation.max_new_tokens, **generation.given)
            for number, tokens in zip(going, new_tokens(said, inputs), strict=True):
                answers[number].append(generation.cut(text_of(lab, tokens)))
            rows, following = _next(requests, going, answers, information, frames)
            on = all(
                _goes_on(new, asked[row], answers[going[row]][-1]) for row, new in zip(rows, following, strict=True)
            )
            said = _only(said, rows, len(going)) if on else None
            going, asked = [going[row] for row in rows], following
    return answers


def _next(
    requests: Sequence[Request], going: list[int], answers: list[list[str]], information: list[Any], frames: int
) -> tuple[list[int], list[list[Message]]]:
    """Which of those that are going have another round, and what it asks; a task may also mend their answers."""
    rows, prompts = [], []
    for row, number in enumerate(going):
        said, over, answered, information[number] = requests[number].said(
            round_idx=len(answers[number]), previous_output=answers[number], previous_round_info=information[number]
        )
        answers[number] = list(answered)
        if not over:
            rows.append(row)
            prompts.append(messages_of(said, frames))
    return rows, prompts


def _goes_on(prompt: Prompt, before: Prompt, answer: str) -> bool:
    """Whether a prompt is the one before, the answer to it, and a question that shows nothing new."""
    if len(prompt) != len(before) + 2 or prompt[-1].shown or prompt[-2].role != "assistant":
        return False
    same = all(
        new.role == old.role and new.text == old.text and len(new.shown) == len(old.shown)
        for new, old in zip(prompt, before, strict=False)
    )
    return same and prompt[-2].text.strip() == answer.strip()


def _only(said: Said, rows: list[int], count: int) -> Said | None:
    if not rows:
        return None
    return said.only(rows) if len(rows) < count else said
