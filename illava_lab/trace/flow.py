"""How the visual tokens of one image go from place to place: the steps of a trace, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from illava_lab.trace.encoded import EncodedImage
from illava_lab.trace.trace import Trace, matrix_of, steps_of

Place = Literal["image", "encoder", "projector", "llm"]
ORDER: tuple[Place, ...] = ("image", "encoder", "projector", "llm")


@dataclass(frozen=True, eq=False)
class Move:
    """What became of the tokens at one place. Those that leave it are the ones that the next move looks at.

    Attributes:
        place, layer: where it happened; "projector" is all that lies between the encoder and the prompt.
        anchor: (M,) the patch in whose place each token that leaves stands.
        held: (M,) which of the tokens that entered stood there.
        weights: (M, N) how much of each of the N tokens that entered is in each that leaves.
    """

    place: Place
    layer: int
    anchor: NDArray[np.int64]
    held: NDArray[np.int64]
    weights: sparse.csr_array

    @property
    def changes(self) -> bool:
        """Whether anything but the tokens as they were leaves."""
        entered = self.weights.shape[1]
        same = self.weights.shape[0] == entered and bool((self.held == np.arange(entered)).all())
        return not same or (self.weights - sparse.eye_array(entered)).count_nonzero() > 0


def flow(trace: Trace, image: int = 0) -> list[Move]:
    """Every move of image number `image`, in order: its encoder's reductions, the projector, its LLM's reductions.

    The first starts from all patches. All of them together are `Trace.sources`: the product of their weights is its
    weights, and the anchor of the last is its anchor.

    Raises:
        LabError: no such image.
    """
    visual = trace.encoded(image)
    patches = visual.layout.patches[1] * visual.layout.patches[2]
    moves = _in_encoder(visual, trace.cls_tokens, patches)
    moves.append(_projector(visual, moves[-1].anchor if moves else np.arange(patches * len(visual.rows))))
    for step in trace.steps:
        if step.stage == "llm" and image in step.rows:
            row = list(step.rows).index(image)
            kept = step.map.anchor[row].cpu().numpy()
            order = kept.argsort(kind="stable")
            held = kept[order]
            moves.append(Move("llm", step.layer, moves[-1].anchor[held], held, matrix_of(step.map, row)[order]))
    return moves


def prompt_flow(trace: Trace) -> list[Move]:
    """The moves of all images of the first prompt as those of one: a move for each place where any of them has one.

    Patches and tokens are counted image after image.
    """
    flows = [flow(trace, image) for image in range(trace.images_per_row[0])]
    patches = [len(trace.layout(image).boxes) for image in range(len(flows))]
    first = np.cumsum([0, *patches[:-1]])
    standing = [np.arange(count) for count in patches]
    places = sorted({(ORDER.index(move.place), move.layer) for moves in flows for move in moves})
    joined = []
    for number, layer in places:
        place, start = ORDER[number], 0
        anchors, helds, weights = [], [], []
        for image, moves in enumerate(flows):
            count = len(standing[image])
            own = next((move for move in moves if (move.place, move.layer) == (place, layer)), None)
            if own is None:  # this image stays as it is there
                own = Move(place, layer, standing[image], np.arange(count), sparse.eye_array(count, format="csr"))
            anchors.append(own.anchor + first[image])
            helds.append(own.held + start)
            weights.append(own.weights)
            standing[image], start = own.anchor, start + count
        matrix = sparse.block_diag(weights, format="csr")
        joined.append(Move(place, layer, np.concatenate(anchors), np.concatenate(helds), matrix))
    return joined


def _in_encoder(visual: EncodedImage, cls_tokens: int, patches: int) -> list[Move]:
    """The reductions of all rows of the image, one move for each layer that has any. Patches are numbered row after
    row, and so are the tokens, each row in the order of its anchors."""
    places = list(dict.fromkeys((step.stage, step.layer) for step in visual.steps))
    rows = [{(step.stage, step.layer): (step, own) for step, own in steps_of(visual, row)} for row in visual.rows]
    # What stands where in each row: the order that the maps count in, CLS (-1) among the patches.
    standing = [np.arange(-cls_tokens, patches) for _ in rows]
    moves = []
    for stage, layer in places:
        weights, anchors, helds, first = [], [], [], 0
        for number, steps in enumerate(rows):
            before = standing[number]
            after, matrix, held = before, sparse.eye_array(len(before), format="csr"), np.arange(len(before))
            if (stage, layer) in steps:
                step, own = steps[stage, layer]
                held = step.map.anchor[own].cpu().numpy()
                after, matrix = before[held], matrix_of(step.map, own)
            enter, leave = _patches_in_order(before), _patches_in_order(after)
            place = np.empty(len(before), int)
            place[enter] = np.arange(len(enter))
            weights.append(matrix[leave][:, enter])
            anchors.append(after[leave] + number * patches)
            helds.append(place[held[leave]] + first)
            first += len(enter)
            standing[number] = after
        moves.append(
            Move(stage, layer, np.concatenate(anchors), np.concatenate(helds), sparse.block_diag(weights, format="csr"))
        )
    return moves


def _patches_in_order(standing: NDArray[np.int64]) -> NDArray[np.int64]:
    """The positions of all but CLS, by the patch that stands there."""
    order = standing.argsort(kind="stable")
    return order[standing[order] >= 0]


def _projector(visual: EncodedImage, standing: NDArray[np.int64]) -> Move:
    """From the encoder's survivors to the visual tokens of the prompt: padding goes, cells are interpolated.

    Args:
        standing: (N,) the patch in whose place each survivor stands.
    """
    layout, weight = visual.layout, visual.weight.cpu().double().numpy()
    slots = np.flatnonzero(weight.sum(1) > 0)
    share, source = weight[slots], layout.source.numpy()[slots]
    share /= share.sum(1, keepdims=True)
    position = np.full(len(layout.boxes), -1)
    position[standing] = np.arange(len(standing))
    at, of = np.nonzero(share)
    entries = (share[at, of], (at, position[source[at, of]]))
    weights = sparse.coo_array(entries, shape=(len(slots), len(standing))).tocsr()
    anchor = source[np.arange(len(slots)), share.argmax(1)]
    return Move("projector", 0, anchor, position[anchor], weights)
