"""The one exception that means "you asked for something that cannot be": its text is a full sentence for a person."""

from typing import Any


class LabError(ValueError):
    """Bad input, named with the argument, the value and what is allowed. The command line prints it and ends with 2.

    What a terminal could take for a command (names of files may hold anything) is spelled out; line breaks stay.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__(spelled(str(sentence), leave="\n"))


def spelled(text: str, leave: str = "") -> str:
    """The text with what a terminal could take for a command spelled out, but for what is in `leave`."""
    return "".join(sign if sign.isprintable() or sign in leave else repr(sign)[1:-1] for sign in text)


def reason(error: BaseException) -> str:
    """Why something failed, in one line; also where the exception is a stranger's and cannot even be printed."""
    try:
        text = " ".join(str(error).split())
    except KeyboardInterrupt:
        raise
    except BaseException as another:
        text = f"(what it says cannot be read: {type(another).__name__})"
    return spelled(text if isinstance(error, LabError) else f"{type(error).__name__}: {text}".removesuffix(": "))


def one_of(setting: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Validate a setting.

    Raises:
        LabError: the value is not among those allowed.
    """
    if value not in allowed:
        raise LabError(f"{setting} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
