"""What a model would rather have said: the most probable words at each step of an answer."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from transformers import LogitsProcessor

WORDS, STEPS = 5, 8


class Word(NamedTuple):
    """A token as text, and its probability at one step of an answer."""

    text: str
    probability: float


class Likely(LogitsProcessor):
    """Notes the most probable next tokens at the first steps of one answer, and changes none of them.

    Nothing waits for the device before `words` is called.
    """

    def __init__(self, words: int = WORDS, steps: int = STEPS) -> None:
        self._count, self._steps = words, steps
        self._noted: list[tuple[Tensor, Tensor]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if len(self._noted) < self._steps:
            top = scores[0].float().softmax(-1).topk(min(self._count, scores.shape[-1]))
            self._noted.append((top.values, top.indices))
        return scores

    def words(self, tokenizer: Any) -> tuple[tuple[Word, ...], ...]:
        """For each step the most probable words, the likeliest first."""
        return tuple(
            tuple(
                Word(tokenizer.decode([token]).strip() or f"token {token}", probability)
                for probability, token in zip(values.tolist(), indices.tolist(), strict=True)
            )
            for values, indices in self._noted
        )
