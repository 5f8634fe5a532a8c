"""What is asked of the model, and what was answered before a run was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from illava_lab.errors import LabError
from illava_lab.files import append, read_plain, write_whole
from illava_lab.lmms.generation import Generation
from illava_lab.paths import quoted


@dataclass(frozen=True, eq=False)
class Request:
    """One document of a task.

    Attributes:
        task: its name.
        doc: number of the document.
        text: what is asked, as far as it is known before pictures are read.
        said: gives the messages; with `round_idx`, `previous_output` and `previous_round_info` those of a round.
        first: the same of the task's first document, by which costs are taken.
        generation: how it is answered.
        padding: whether nobody looks at the answer.
    """

    task: str
    doc: int
    text: str
    said: Callable[..., Any]
    first: Callable[..., Any]
    generation: Generation
    padding: bool = False

    @property
    def key(self) -> str:
        """What tells it from all others of a run."""
        asked = json.dumps([self.text, self.generation.key])
        return f"{self.task} {self.doc} {hashlib.sha256(asked.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Answered:
    """An answer, of a conversation all of them, and the seconds that it took: its share of those of its batch."""

    text: Any
    seconds: float


@dataclass(eq=False)
class Answers:
    """What is answered already, so that a run that is stopped goes on behind it.

    Each process writes a file of its own, an answer at a time, and all of them are read: how many processes there are
    may change.

    Args:
        folder: of the run; None remembers nothing beyond this process.
        name: what the answers belong to.
        process: number of this one.

    Raises:
        LabError: the folder cannot be written.
    """

    folder: Path | None = None
    name: str = ""
    process: int = 0
    _known: dict[str, Answered] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(self.folder.glob(f"{self.name}.*.jsonl")):
                self._read(path)
            if not self._path.exists():
                write_whole(self._path, "")
        except OSError as error:
            raise self._cannot(error) from None

    @property
    def _path(self) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.name}.{self.process}.jsonl"

    def _read(self, path: Path) -> None:
        """Take what can be read: a line that a killed run left unfinished is asked again."""
        for line in read_plain(path).split(b"\n"):
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = Answered(entry["text"], entry["seconds"])
            except (ValueError, KeyError, TypeError, RecursionError):
                continue

    def get(self, request: Request) -> Answered | None:
        """The answer, if there is one and asking again could give no other."""
        return self._known.get(request.key) if request.generation.greedy else None

    def add(self, request: Request, text: Any, seconds: float) -> None:
        """Remember an answer, safe on the disk before this returns.

        Raises:
            LabError: it cannot be written.
        """
        self._known[request.key] = Answered(text, seconds)
        if self.folder is None:
            return
        entry = {"key": request.key, "text": text, "seconds": seconds}
        try:
            append(self._path, "\n" + json.dumps(entry))  # in front, so that half a line of before stays by itself
        except OSError as error:
            raise self._cannot(error) from None

    def seconds(self) -> list[tuple[str, float]]:
        """Of each answer its key (which begins with its task) and its seconds."""
        return [(key, answered.seconds) for key, answered in self._known.items()]

    def _cannot(self, error: OSError) -> LabError:
        assert self.folder is not None
        return LabError(f"out: cannot write answers to {quoted(self.folder)} ({error.strerror or error})")
