"""How an answer is made, read from what a benchmark says about that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from illava_lab.errors import LabError
from illava_lab.session.asked import check_count
from illava_lab.session.generation import ALWAYS, CHOOSING

SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
NEW_TOKENS = ("max_new_tokens", "max_gen_toks", "max_tokens")
DEFAULT_NEW_TOKENS = 128  # as lmms-eval's own models have it


@dataclass(frozen=True)
class Generation:
    """How an answer is made.

    Attributes:
        max_new_tokens: where it is cut off.
        until: texts before which it ends.
        given: further arguments of `generate`.
        ignored: what the benchmark says beyond that, which is of no use here.
    """

    max_new_tokens: int
    until: tuple[str, ...]
    given: Mapping[str, Any]
    ignored: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether asking again gives the same answer."""
        return not self.given.get("do_sample", False)

    @property
    def key(self) -> str:
        """What tells it from others."""
        return repr((self.max_new_tokens, self.until, sorted(self.given.items())))

    def cut(self, text: str) -> str:
        """An answer up to the first of the texts that end it."""
        for end in self.until:
            text = text.split(end)[0]
        return text.strip()


def generation_of(said: Mapping[str, Any]) -> Generation:
    """Read the `generation_kwargs` of a task.

    A temperature of 0 means greedy, as everywhere in lmms-eval; what is None was not said.

    Raises:
        LabError: beams or several answers at once, a number of tokens that is none, or texts that are none.
    """
    rest = {name: value for name, value in said.items() if value is not None}
    longest = [rest.pop(name) for name in NEW_TOKENS if name in rest]
    until = rest.pop("until", ())
    until = (until,) if isinstance(until, str) else tuple(until)
    if not all(isinstance(end, str) and end for end in until):
        raise LabError(f"until must be texts that are not empty, got {until!r}")
    for name, value in ALWAYS.items():
        if rest.pop(name, value) != value:
            raise LabError(f"{name} must be {value} in generation_kwargs for the lab to answer, got {said[name]!r}")
    temperature = rest.get("temperature", 0 if not rest.get("do_sample") else 1)
    sampled = rest.pop("do_sample", temperature > 0) and temperature > 0
    drawn = {name: rest.pop(name) for name in SAMPLING if name in rest}
    given = {name: value for name, value in rest.items() if name in CHOOSING}
    if sampled:
        given |= {"do_sample": True, **drawn}
    ignored = tuple(name for name in rest if name not in CHOOSING)
    return Generation(
        check_count("max_new_tokens", longest[0] if longest else DEFAULT_NEW_TOKENS), until, given, ignored
    )
