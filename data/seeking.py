"""What a question asks about, so that training can show the decoder where to look.

"Do picture 1 and picture 3 show the same digit?" seeks a digit in picture 1, and a digit in picture 3.
"""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import torch
from concepts import KINDS
from large import QUARTERS
from packing import IGNORED
from scenes import COLORS, DIGITS, PLURALS, SHAPES, WORDS
from sights import ANCHOR, KIND, PLACES, Shown
from torch import Tensor
from torch.nn import functional as F

COLOR = KIND + 1
WHERE = max(PLACES.values()) + 1  # every frame of a video is one place here
WIDTH = len(KINDS) + 1 + len(COLORS) + WHERE
GROUPS_OF = {"shape": SHAPES, "object": SHAPES, "digit": DIGITS, "number": DIGITS, "word": WORDS}


def sought(text: str) -> np.ndarray:
    """bool [2, WIDTH]: kinds, colors and places of the first thing and of the last that a question is about."""
    things: list[tuple[tuple[str, ...], str]] = []
    color, pictures = "", []
    singular = {plural: shape for shape, plural in PLURALS.items()}
    for word, then in pairwise([*re.findall(r"\w+", text.lower()), ""]):
        word = singular.get(word, word)
        group = GROUPS_OF.get(word, GROUPS_OF.get(word.removesuffix("s"), ()))
        if word in COLORS:
            color = word
        elif word in SHAPES or group:
            kinds = (word,) if not group else (then,) if then in group else group
            things.append((kinds, color))
            color = ""
        elif word == "picture" and then.isdigit():
            pictures.append(PLACES["picture"] + int(then) - 1)
    if color:  # "What shape is red?"
        things = [(SHAPES, color)]
    things = [thing for thing in things if len(thing[0]) == 1 or thing[1]] or things[:1]
    crops = [PLACES["crop"] + index for index, quarter in enumerate(QUARTERS) if f"at the {quarter}" in text]
    places = crops or pictures or [place for place in range(WHERE) if place != PLACES["view"]]
    if len(pictures) == 2:
        return np.stack([_mark(things[0], pictures[:1]), _mark(things[-1], pictures[1:])])
    return np.stack([_mark(things[0], places), _mark(things[-1], places)])


def seek(texts: list[str], most: int) -> np.ndarray:
    """bool [most, 2, WIDTH]: `sought` of each question, and nothing behind the last."""
    out = np.zeros((most, 2, WIDTH), bool)
    for index, text in enumerate(texts):
        out[index] = sought(text)
    return out


def _mark(thing: tuple[tuple[str, ...], str], places: list[int]) -> np.ndarray:
    kinds, colors, where = np.zeros(len(KINDS), bool), np.zeros(1 + len(COLORS), bool), np.zeros(WHERE, bool)
    kinds[[KINDS.index(kind) for kind in thing[0]]] = True
    colors[1 + tuple(COLORS).index(thing[1]) if thing[1] else slice(None)] = True
    where[places] = True
    return np.concatenate([kinds, colors, where])


def there(seek: Tensor, labels: Tensor, shown: Shown) -> Tensor:
    """(rows, questions, 2, L) which tokens of the prompt stand for what each question is about: anchors, one for each
    thing and view, in crops rather than in the view of the whole.

    Args:
        seek: (rows, questions, 2, WIDTH) of `sought`.
        labels: (rows, views, patches, groups).
    """
    kinds, colors, where = seek.split([len(KINDS), 1 + len(COLORS), WHERE], -1)
    rows, questions = seek.shape[:2]
    size = labels.shape[1:3]
    flat = labels.flatten(1, 2)[:, None, None].expand(-1, questions, 2, -1, -1)
    found = kinds.gather(-1, flat[..., KIND]) & colors.gather(-1, flat[..., COLOR]) & (flat[..., ANCHOR] == 1)
    if shown.pooled:
        side = int(size[1] ** 0.5)
        cells = found.float().view(-1, 1, side, side)
        found = F.max_pool2d(cells, 2).view(rows, questions, 2, -1) > 0
    source, place = (torch.from_numpy(part).to(labels.device) for part in (shown.source, shown.place))
    found = found[..., source.clamp(min=0)] & (source >= 0)
    return found & where[..., place.clamp(0, WHERE - 1)]


def look_loss(looks: Tensor, wanted: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, list[float]]:
    """How far heads are from looking at what is asked about, where an answer begins, and whether most of their
    attention is there (1) or not (0).

    Args:
        looks: (rows, 2, T, L) logarithms of the text's attention to what is shown.
        wanted: (rows, questions, 2, L) of `there`.
    """
    answers = batch["target"] != IGNORED
    begins = answers & ~F.pad(answers[:, :-1], (1, 0))
    row, at = begins.nonzero(as_tuple=True)
    wanted = wanted[row, batch["asked"][row, at] - 1].float()
    looks = looks[row, :, at]
    some = wanted.any(-1)
    wanted, looks = wanted[some], looks[some]
    loss = -(wanted * looks).sum(-1) / wanted.sum(-1)
    return loss.sum() / max(1, len(loss)), ((wanted * looks.exp()).sum(-1) > 0.5).float().tolist()
