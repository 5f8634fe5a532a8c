"""What lies in every slot of the processor's prompts, and which images these are; on the host."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.hooks.llm.call import PlacedImage, Prompt
from illava_lab.models.families import Anatomy
from illava_lab.models.layout import Medium
from illava_lab.trace.survivors import EncodedImage, join_tiles


def read_prompt(anatomy: Anatomy, ids: Tensor, hidden: Tensor, mask: Tensor | None) -> Prompt:
    """What lies in every slot. The one host synchronisation of a prefill: it decides every later length."""
    hole = hidden[..., 0].isnan()
    valid = torch.ones_like(hole) if mask is None else mask[:, : hidden.shape[1]].bool()
    holds = [ids == token for token in anatomy.placeholders.values()]
    host = torch.stack([valid, hole, *holds]).cpu().numpy()
    return Prompt(host[0], host[1], dict(zip(anatomy.placeholders, host[2:], strict=True)))


def images_of(anatomy: Anatomy, prompt: Prompt, encoded: dict[Medium, list[EncodedImage]]) -> list[PlacedImage]:
    """The images and videos of the batch in the order of their placeholders."""
    out = []
    for medium, holds in prompt.media.items():
        visuals, (batch, needed) = encoded.get(medium, []), (len(holds), int(holds.sum()))
        if needed and not visuals:
            raise LabError(f"the prompts have {needed} places for {medium}s, but this call brought no {medium}")
        ends = np.cumsum([0, *(visual.layout.slots for visual in visuals)])
        # Beams and several returned sequences repeat a prompt, but its images were encoded once.
        repeats = needed // int(ends[-1]) if ends[-1] else 1
        bounds = np.cumsum([0, *holds.sum(1)[:: max(1, repeats)]])
        if needed and (needed != repeats * ends[-1] or batch % repeats or not np.isin(bounds, ends).all()):
            lengths = np.diff(ends).tolist()
            raise LabError(f"the prompts have {needed} places for {medium}s, those of this call take {lengths}")
        for row in range(batch if needed else 0):
            own, slots = np.searchsorted(ends, bounds[row // repeats :][:2]), np.flatnonzero(holds[row])
            at = [slots[ends[i] - ends[own[0]] : ends[i + 1] - ends[own[0]]] for i in range(*own)]
            for tiles in _runs(at, anatomy.media[medium].tiled):
                visual = join_tiles([visuals[own[0] + i] for i in tiles])
                place = np.concatenate([at[i] for i in tiles])
                out.append(PlacedImage(row, visual, place, int(prompt.text[row, place[-1] :].sum())))
    return sorted(out, key=lambda image: (image.row, image.at[0]))


def _runs(at: list[np.ndarray], tiled: bool) -> list[list[int]]:
    """Which slots belong to one image: where images have tiles, all that follow each other without a gap."""
    out: list[list[int]] = []
    for i, slots in enumerate(at):
        if tiled and i and slots[0] == at[i - 1][-1] + 1:
            out[-1].append(i)
        else:
            out.append([i])
    return out
