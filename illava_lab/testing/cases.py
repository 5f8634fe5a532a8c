"""The cases on which promises are tried, from small to large."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from illava_lab.method.ask import take_note
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Stage, Tokens
from illava_lab.testing.examples import example_tokens
from illava_lab.testing.tensors import changed, squarest_grid


@dataclass(frozen=True)
class Case:
    """What a strategy was asked: `keep` of these tokens."""

    stage: Stage
    patches: int
    keep: int
    batch: int = 1
    cls: bool = False
    newlines: int = 0
    reduced: bool = False
    equal: bool = False
    entry: bool = False
    video: bool = False
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    writer: Strategy | None = None  # who noted something of the tokens of an encoder
    layer: int | None = None  # where not every layer can be asked about

    @property
    def protected(self) -> int:
        return int(self.cls) + self.newlines

    @property
    def count(self) -> int:
        return self.patches + self.protected

    def tokens(self) -> Tokens:
        """Fresh ones, which a strategy may spoil."""
        tokens = changed(_shared_tokens(replace(self, keep=0, writer=None, layer=None)), lambda name, x: x.clone())
        tokens.layer = tokens.layer if self.layer is None else self.layer
        if self.writer is not None and self.stage == "encoder":
            take_note(self.writer, tokens, None)
        return tokens

    def __str__(self) -> str:
        protected = f", {self.newlines} of them protected line ends" if self.newlines else ", CLS first" * self.cls
        height, width = squarest_grid(2 * self.patches if self.reduced else self.patches)
        parts = [f"{self.stage} stage", f"batch {self.batch}", f"{self.count} tokens{protected}", f"keep {self.keep}"]
        parts += [f"{height} frames of {width} tokens" if self.video else f"grid {height} x {width}"]
        parts[-1] += " with patches missing" if self.reduced else ""
        parts += ["all tokens equal"] if self.equal else []
        parts += ["in front of the first layer"] if self.entry else []
        parts += [str(self.dtype).removeprefix("torch.")] if self.dtype != torch.float32 else []
        parts += [self.device] if self.device != "cpu" else []
        return ", ".join(parts)


@lru_cache(maxsize=256)
def _shared_tokens(case: Case) -> Tokens:
    return example_tokens(
        case.stage, case.patches, case.batch, cls=case.cls, newlines=case.newlines, reduced=case.reduced,
        equal=case.equal, entry=case.entry, video=case.video, dtype=case.dtype, device=case.device,
    )  # fmt: skip
