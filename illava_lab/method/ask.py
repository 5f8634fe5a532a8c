"""Ask a strategy for its map, and refuse an answer that is not what was asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from illava_lab.errors import LabError, hosting
from illava_lab.method.keep import Keep
from illava_lab.method.strategy import Strategy
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens


def ask(strategy: Strategy, tokens: Tokens, keep: int) -> TokenMap:
    """The strategy's map for these tokens, refused if it is not what was asked for.

    Raises:
        LabError: more tokens are protected than `keep`, or the strategy returned something else than a TokenMap of
            `keep` slots for every row.
    """
    where = f"strategy {strategy.name!r} at {tokens.stage} layer {tokens.layer}"
    tokens.room(keep)
    with exact(tokens.hidden.device.type), hosting(where):
        answer = strategy.map(tokens, keep)
    if not isinstance(answer, TokenMap):
        raise LabError(f"{where} must return a TokenMap, got {type(answer).__name__}")
    if tuple(answer.anchor.shape) != (tokens.batch, keep) or answer.tokens != tokens.count:
        raise LabError(
            f"{where} was asked to keep {keep} of {tokens.count} tokens for {tokens.batch} rows, it returned {answer!r}"
        )
    return answer


def take_note(strategy: Strategy, tokens: Tokens, noted: Tensor | None) -> Tensor:
    """What the strategy notes of these tokens, which is their `noted` from now on.

    Args:
        noted: what it noted of them before, or None.

    Raises:
        LabError: the note is no tensor of a number or more for every token.
    """
    where = f"strategy {strategy.name!r} at {tokens.stage} layer {tokens.layer}"
    with exact(tokens.hidden.device.type), hosting(where):
        note = strategy.note(tokens, noted)
    if not isinstance(note, Tensor) or note.shape[:2] != tokens.hidden.shape[:2]:
        got = f"shape {tuple(note.shape)}" if isinstance(note, Tensor) else type(note).__name__
        expected = (tokens.batch, tokens.count)
        raise LabError(f"strategy {strategy.name!r}: a note must have shape {expected} or more, got {got}")
    tokens._statistics["noted"] = note
    return note


def own_counts(strategy: Strategy, tokens: Tokens, keep: Keep) -> list[int] | None:
    """How many slots each row keeps, where the strategy lets the picture decide; None where the schedule does.

    Raises:
        LabError: no number of slots for every row, or one that is not there.
    """
    if not strategy.own_count:
        return None
    where = f"strategy {strategy.name!r} at {tokens.stage} layer {tokens.layer}"
    with exact(tokens.hidden.device.type), hosting(where):
        counts = strategy.count(tokens, keep)
    if counts is None:
        return None
    if not isinstance(counts, Tensor) or counts.shape != (tokens.batch,) or counts.is_floating_point():
        raise LabError(
            f"strategy {strategy.name!r}: count must return {tokens.batch} whole numbers, got {counts!r:.80}"
        )
    known: list[int] = counts.tolist()
    if not all(max(1, tokens.protected_count) <= count <= tokens.count for count in known):
        most = f"{max(1, tokens.protected_count)} to {tokens.count}"
        raise LabError(f"strategy {strategy.name!r}: count must be from {most} for these tokens, got {known}")
    return known


def by_count(counts: list[int]) -> dict[int, list[int]]:
    """Count -> the rows that keep so many."""
    return {count: [row for row, own in enumerate(counts) if own == count] for count in sorted(set(counts))}


def exact(device: str) -> AbstractContextManager[None]:
    """Where autocast would let products be of half precision, and so tokens be chosen by rounding: without it."""
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()
