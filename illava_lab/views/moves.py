"""Moves of visual tokens as short lists of whole numbers, and back; `illava_lab.views.run` describes the lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from illava_lab.trace.flow import Move

WHOLE = 1000  # a weight of 1
Lists = dict[str, list[Any]]


def deltas(numbers: Iterable[int]) -> list[int]:
    """The first number, and then the differences between neighbours."""
    row = [int(number) for number in numbers]
    return [after - before for before, after in zip([0, *row], row, strict=False)]


def sums(numbers: Iterable[int]) -> list[int]:
    """What `deltas` was made of."""
    return list(accumulate(numbers))


def encoded(move: Move) -> Lists:
    """A move as lists."""
    held, entered = move.held.tolist(), move.weights.shape[1]
    gone = sorted(set(range(entered)) - set(held))
    table = move.weights.tocoo()
    entries = [
        entry for entry in zip(table.row.tolist(), table.col.tolist(), table.data.tolist(), strict=True) if entry[2]
    ]

    most: dict[int, tuple[int, float]] = {}
    for slot, token, weight in entries:
        if abs(weight) > abs(most.get(token, (-1, 0.0))[1]):
            most[token] = slot, weight
    taken = {token: most.get(token, (-1, 0.0)) for token in gone}
    own = dict.fromkeys(range(len(held)), 0.0) | {
        slot: weight for slot, token, weight in entries if held[slot] == token
    }
    odd = [slot for slot, weight in own.items() if _thousandths(weight) != WHOLE]
    out: Lists = {"held": deltas(held)} if held != sorted(set(held)) else {"gone": deltas(gone)}
    out["into"] = deltas(slot for slot, _ in taken.values())
    out["share"] = [_thousandths(weight) for slot, weight in taken.values() if slot >= 0]
    out["mixed"] = deltas(odd)
    out["own"] = [_thousandths(own[slot]) for slot in odd]
    more = [entry for entry in entries if held[entry[0]] != entry[1] and taken.get(entry[1], (-1, 0.0))[0] != entry[0]]
    out["to"], out["of"] = deltas(slot for slot, _, _ in more), deltas(token for _, token, _ in more)
    out["more"] = [_thousandths(weight) for _, _, weight in more]
    if not out["share"]:
        del out["into"]
    return {name: row for name, row in out.items() if row or name == "gone"}


def decoded(lists: Lists, entered: int) -> tuple[list[int], sparse.csr_array]:
    """`Move.held` and `Move.weights` of a move, of so many tokens that entered; weights are rounded to thousandths."""
    if "held" in lists:
        held = sums(lists["held"])
        gone = sorted(set(range(entered)) - set(held))
    else:
        gone = sums(lists["gone"])
        held = sorted(set(range(entered)) - set(gone))
    own = dict.fromkeys(range(len(held)), WHOLE) | dict(
        zip(sums(lists.get("mixed", ())), lists.get("own", ()), strict=True)
    )
    entries = [(slot, held[slot], weight) for slot, weight in own.items()]
    into, share = sums(lists.get("into", ())), iter(lists.get("share", ()))
    entries += [(slot, token, next(share)) for token, slot in zip(gone, into, strict=bool(into)) if slot >= 0]
    entries += zip(*(sums(lists.get(name, ())) for name in ("to", "of")), lists.get("more", ()), strict=True)
    rows, columns, weights = np.array(entries).T
    return held, sparse.coo_array((weights / WHOLE, (rows, columns)), shape=(len(held), entered)).tocsr()


def _thousandths(weight: float) -> int:
    """Never 0 for a weight that is not: whoever has a part in a token stays a member of it."""
    if weight == 0:
        return 0
    return round(weight * WHOLE) or (1 if weight > 0 else -1)


@dataclass(frozen=True, eq=False)
class State:
    """The tokens that are left at one place of a run.

    Attributes:
        anchor: (M,) the patch in whose place each stands.
        weights: (M, P) how much of every patch is in each.
    """

    anchor: NDArray[np.int64]
    weights: sparse.csr_array

    def owner(self) -> NDArray[np.int64]:
        """(P,) the token that holds the largest weight of each patch, -1 where none has any."""
        columns = abs(self.weights).tocsc()
        full = np.diff(columns.indptr) > 0
        owner = np.full(columns.shape[1], -1)
        owner[full] = np.asarray(columns.argmax(axis=0)).ravel()[full]
        return owner


def states(run: dict[str, Any]) -> list[State]:
    """What is left at each entry of a run's `layers`."""
    patches = sum(height * width for height, width in (view["grid"] for view in run["views"]))
    state = State(np.arange(patches), sparse.eye_array(patches, format="csr"))
    out = []
    for at in range(len(run["layers"]["stage"])):
        for lists in (move for move in run["moves"] if move["at"] == at):
            held, weights = decoded(lists, len(state.anchor))
            state = State(state.anchor[held], (weights @ state.weights).tocsr())
        out.append(state)
    return out
