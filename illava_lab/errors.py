"""The one exception that means "you asked for something that cannot be": its text is a full sentence for a person."""

from contextlib import AbstractContextManager
from typing import Any

LONGEST = 500  # characters of each end of a line


class LabError(ValueError):
    """Bad input, named with the argument, the value and what is allowed. The command line prints it and ends with 2.

    What a terminal could take for a command (names of files may hold anything) is spelled out; line breaks stay. Of a
    line that is very long, because it names a value that is, the middle is left out.
    """

    def __init__(self, sentence: object = "") -> None:
        lines = spelled(str(sentence), leave="\n").split("\n")
        super().__init__("\n".join(f"{s[:LONGEST]} ... {s[-LONGEST:]}" if len(s) > 3 * LONGEST else s for s in lines))


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


class hosting(AbstractContextManager[None]):  # written small, as contextlib's own are
    """Run a stranger's code. What would end the program, such as sys.exit, is a failure like any other.

    It is no generator: of one that an interrupt left open, Python's collector would report a failure later.

    Args:
        who: the name that the failure gets, as a sentence begins with it.

    Raises:
        LabError: the code raised what is no Exception. Ctrl-C stays what it is.
    """

    def __init__(self, who: str) -> None:
        self.who = who

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, (Exception, KeyboardInterrupt)):
            raise LabError(f"{self.who} fails with {reason(error)}") from error


def one_of(setting: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Validate a setting.

    Raises:
        LabError: the value is not among those allowed.
    """
    if not any(isinstance(value, type(each)) and value == each for each in allowed):
        raise LabError(f"{setting} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
