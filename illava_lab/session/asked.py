"""What a person asks with: checked before any work, and refused in a sentence that names the argument."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from illava_lab.errors import LabError


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number, of whatever type.

    Raises:
        LabError: it is none, below `least` or above `most`.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most:,}"
        raise LabError(f"{name} must be a whole number {allowed}, got {value!r}")
    return int(value)


def check_flag(name: str, value: Any) -> None:
    """Raise LabError unless the value is True or False."""
    if not isinstance(value, bool):
        raise LabError(f"{name} must be True or False, got {value!r}")


def check_question(question: Any) -> str:
    """The question, if it is one.

    Raises:
        LabError: no text, an empty one, or one with half a surrogate pair in it, which no tokenizer can read.
    """
    if not isinstance(question, str) or not question.strip():
        raise LabError(f"question must be a sentence, got {question!r}")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        half = question[error.start]
        raise LabError(
            f"question must be text, but its character {error.start} is {half!a}, half a character"
        ) from None
    return question


def check_entries(images: Any, questions: Any) -> None:
    """Raise LabError unless both are lists, equally long and not empty."""
    for name, value in (("images", images), ("questions", questions)):
        if not isinstance(value, (list, tuple)):
            raise LabError(f"{name} must be a list with one entry for each question, got {value!r:.120}")
    if len(images) != len(questions) or not questions:
        raise LabError(f"{len(questions)} questions need as many entries in images, got {len(images)}")


def as_list(entry: Any) -> list[Any]:
    """What a prompt shows, one image or video or several of them, as a list."""
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]


def at_least_one(name: str, entry: Any) -> list[Any]:
    """The same, where the prompt is about what it shows.

    Raises:
        LabError: an empty list.
    """
    shown = as_list(entry)
    if not shown:
        raise LabError(f"{name} must show at least one image or video, got {entry!r}")
    return shown
