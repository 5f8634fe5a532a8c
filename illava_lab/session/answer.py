"""What a question comes back with."""

from __future__ import annotations

from dataclasses import dataclass

from illava_lab.session.likely import Word
from illava_lab.trace.trace import Trace


@dataclass(frozen=True)
class Timing:
    """Wall times of one answer, in seconds.

    Attributes:
        prefill: from the call to the first new token.
        decode: from the first new token to the last.
        tokens: new tokens, the end token included.
    """

    prefill: float
    decode: float
    tokens: int


@dataclass(frozen=True)
class Answer:
    """What `Lab.ask` returns.

    Attributes:
        text: the answer.
        trace: every reduction step, and the patches that each survivor stands for.
        timing: of this one answer; a single run, not a measurement (see `compare` for that).
        unknown_words: words of the question that the model's vocabulary does not have.
        note: one sentence that names them and says what the model knows; empty where it knows every word.
        strategy: what reduced the visual tokens, with its settings.
        budget: what it was given, such as "keep 0.5"; "keep 0.5 (the default)" where nobody gave it any.
        words: for each of the first steps of the answer, the most probable words with their probabilities.
    """

    text: str
    trace: Trace
    timing: Timing
    unknown_words: tuple[str, ...] = ()
    note: str = ""
    strategy: str = "none"
    budget: str = "keep 1"
    words: tuple[tuple[Word, ...], ...] = ()
