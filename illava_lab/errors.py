"""The one exception that means "you asked for something that cannot be": its text is a full sentence for a person."""

from typing import Any


class LabError(ValueError):
    """Bad input, named with the argument, the value and what is allowed. The command line prints it and ends with 2.

    What a terminal could take for a command (names of files may hold anything) is spelled out; line breaks stay.
    """

    def __init__(self, sentence: object = "") -> None:
        super().__init__("".join(s if s.isprintable() or s == "\n" else repr(s)[1:-1] for s in str(sentence)))


def one_of(setting: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Validate a setting.

    Raises:
        LabError: the value is not among those allowed.
    """
    if value not in allowed:
        raise LabError(f"{setting} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
