"""Tables of cosines for the page, packed small: it unpacks them by `widgets/web/redundancy.js`."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def hundredths(numbers: NDArray[np.floating]) -> NDArray[np.int64]:
    """Numbers as whole hundredths, as two decimals say them."""
    return np.rint(np.asarray(numbers, np.float64) * 100).astype(np.int64)


def leftover(table: NDArray[np.int64], before: NDArray[np.int64] | None = None) -> tuple[int, NDArray[np.uint8]]:
    """What its surroundings leave to say of a table of cosines, so that most numbers are small and take few bytes.

    Layers are like those before them: a share of the layer before is taken off. And a table is smooth along both sides:
    what an entry's neighbours make one guess is taken off, too. The guess is that of LOCO-I (Weinberger, Seroussi and
    Sapiro 1996), from the entries to the left, above, and between the two.

    Args:
        table: (P, P) symmetric, in hundredths.
        before: the same for the layer before, if there is one.

    Returns:
        The share, in quarters; and what is left modulo 256, row after row from the diagonal on.
    """
    options = [(0, _unguessed(table))]
    if before is not None:
        options += [(share, _unguessed(table - (share * before + 2) // 4)) for share in (2, 3, 4)]
    share, left = min(options, key=lambda option: int(np.abs(option[1]).sum()))
    return share, left.astype(np.uint8)


def _unguessed(table: NDArray[np.int64]) -> NDArray[np.int64]:
    padded = np.pad(table, ((1, 0), (1, 0)))
    west, north, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    low, high = np.minimum(west, north), np.maximum(west, north)
    guess = np.where(corner >= high, low, np.where(corner <= low, high, west + north - corner))
    return (table - guess)[np.triu_indices(len(table))]


def packed(arrays: Iterable[NDArray[np.generic]]) -> bytes:
    """The bytes of arrays behind each other, deflated; with the strategy that zlib has for small numbers."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_FILTERED)
    return packer.compress(b"".join(array.tobytes() for array in arrays)) + packer.flush()
