"""What each patch of a picture shows, in words of the vocabulary.

The concepts of a patch are the supervision of the vision tower, and their summed word embeddings are
the "oracle" visual tokens on which the language model learns to answer before it ever sees a picture.
"""

from __future__ import annotations

import numpy as np
from clip_llama import GRID, PATCH
from scenes import COLORS, COLUMNS, DIGITS, ROWS, SHAPES, WORDS, Scene

KINDS = ("background", *SHAPES, *DIGITS, *WORDS)
# Groups of exclusive concepts; a concept is the words whose embeddings it adds.
GROUPS: dict[str, list[tuple[str, ...]]] = {
    "kind": [(kind,) for kind in KINDS],
    "color": [(), *((color,) for color in COLORS)],
    "place": [(), *((row, column) for row in ROWS for column in COLUMNS)],
    "anchor": [(), ("object",)],
}
# The patch at the middle of each cell lies on the cell's object and stands for it: counting objects is
# counting anchors, whatever the objects' sizes.
MIDDLES = [int((index + 0.5) * GRID / 3) for index in range(3)]
ANCHORS = np.array([row * GRID + column for row in MIDDLES for column in MIDDLES])


def covered(low: int, high: int) -> np.ndarray:
    """Share of each of the patches along one side that lies between two pixel positions."""
    edges = np.arange(GRID) * PATCH
    return np.clip(np.minimum(high, edges + PATCH) - np.maximum(low, edges), 0, PATCH) / PATCH


def patch_labels(scene: Scene) -> np.ndarray:
    """Index within each group of GROUPS for every patch: int64 [patches, groups]."""
    labels = np.zeros((GRID * GRID, len(GROUPS)), dtype=np.int64)
    most = np.full(GRID * GRID, 0.3)
    for item in scene.items:
        left, top, right, bottom = item.box
        share = np.outer(covered(top, bottom), covered(left, right)).ravel()
        share[ANCHORS[item.cell]] = 2.0
        mine = share > most
        most = np.maximum(most, share)
        kind = KINDS.index(item.kind if item.kind in SHAPES else item.value)
        color = 1 + tuple(COLORS).index(item.value) if item.kind in SHAPES else 0
        labels[mine] = (kind, color, 1 + item.cell, 0)
        labels[ANCHORS[item.cell], 3] = 1
    return labels
