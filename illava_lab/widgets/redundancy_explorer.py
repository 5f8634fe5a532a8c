"""Redundancy explorer: pick a patch, and see which others are like it in any layer."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
import traitlets
from PIL import Image
from torch.nn.functional import one_hot

from illava_lab.errors import LabError, one_of
from illava_lab.measuring.redundancy import Recording, clusters, record, similarity
from illava_lab.method.tokens import Stage
from illava_lab.models.images import ImageLike
from illava_lab.session.lab import Lab
from illava_lab.trace.sources import Sources
from illava_lab.views.pictures import seen_image, token_picture
from illava_lab.views.seen import webp
from illava_lab.widgets.explorer import Explorer, ExplorerFigure
from illava_lab.widgets.front import script, style
from illava_lab.widgets.panels import Panel, check_place, live
from illava_lab.widgets.tables import hundredths, leftover, packed

STAGE_NAMES: dict[Stage, str] = {"encoder": "image encoder", "llm": "LLM"}
LIKENESS = {False: "cosine", True: "cosine, mean removed"}
LEAST = 0.9  # the smallest cosine in a group
PAIRS = 1_000_000  # of patches, in layers that are compared in one go: a second's work
ROOM = 6  # blocks of layers that the widget holds; whoever opens its page again is sent them
THIRD = {"groups": "groups of like patches", "attention": "attention in this layer"}


def redundancy_panels(
    seen: Image.Image,
    recording: Recording,
    stage: Stage = "encoder",
    layer: int = 0,
    patch: int = 0,
    centred: bool = False,
    third: str = "groups",
    least: float = LEAST,
) -> list[Panel]:
    """The image, how like `patch` every patch is, and groups of like patches (or the attention they get).

    Args:
        seen: the image as the model sees it (`illava_lab.views.pictures.seen_image`).
        recording: of that image.
        layer: what enters this layer; one more than the last for what leaves the stage.
        third: "groups" (cosine of `least` or more) or "attention".

    Raises:
        LabError: a stage, layer, patch or third panel that is not there.
    """
    one_of("stage", stage, tuple(recording.hidden))
    one_of("third", third, tuple(THIRD))
    one_of("centred", centred, (False, True))
    states, (height, width) = recording.hidden[stage], recording.grid
    check_place("layer", layer, len(states) - 1, f" in the {stage}")
    check_place("patch", patch, height * width - 1)
    x = states[layer]
    like = similarity(x, centred)[patch].view(height, width).numpy()
    number = np.arange(height * width).reshape(height, width)
    hover = np.vectorize(
        lambda i, s: f"patch {i}: row {i // width}, column {i % width}<br>cosine to patch {patch}: {s:.2f}"
    )
    text = hover(number, like)
    middle = Panel(
        f"how like patch {patch} they are", recording.grid, values=like, limits=(-1.0, 1.0), legend=LIKENESS[centred],
        colors="RdBu_r", hover=text, frames=[patch],
    )  # fmt: skip
    picked = Panel("what the model sees", recording.grid, seen, hover=text, frames=[patch])
    return [
        picked,
        middle,
        _groups(seen, x, recording, least, centred) if third == "groups" else _attention(recording, stage, layer),
    ]


def _groups(seen: Image.Image, x: torch.Tensor, recording: Recording, least: float, centred: bool) -> Panel:
    """Patches of one group in one colour, each group framed where its first patch is."""
    label = clusters(x, least, centred)
    member = one_hot(label).T.double()
    size, grid = member.sum(1), recording.grid
    place = torch.cartesian_prod(*(torch.arange(side) / side for side in grid)).flip(1)
    boxes = torch.cat([place, place + torch.tensor([1 / grid[1], 1 / grid[0]])], dim=1)
    sources = Sources(member / size[:, None], member.argmax(1), grid, boxes)
    hover = [f"patch {i}: in a group of {int(size[group])}" for i, group in enumerate(label)]
    picture = token_picture(seen, sources)
    title = f"{len(size)} groups with cosine ≥ {least:g}{', mean removed' if centred else ''}"
    return Panel(title, grid, picture, hover=np.array(hover).reshape(grid))


def _attention(recording: Recording, stage: Stage, layer: int) -> Panel:
    paid, grid = recording.attention[stage], recording.grid
    title = "attention that each patch receives" if stage == "encoder" else "attention of the last text token"
    if layer == len(paid):
        return Panel(title, grid, note="what leaves a stage<br>has no attention of its own")
    times = (paid[layer] / paid[layer].mean()).view(grid).numpy()
    hover = np.vectorize(lambda t: f"{t:.1f} times the mean patch")(times)
    return Panel(
        title, grid, values=times, limits=(0.0, max(5.0, float(times.max()))), legend="times the mean", hover=hover
    )


def redundancy_figure(seen: Image.Image, recording: Recording, **settings: Any) -> go.Figure:
    """What the explorer shows, as a plotly figure: its plain-function twin. Settings as in `redundancy_panels`."""
    return live(redundancy_panels(seen, recording, **settings))


# ---------------------------------------------------------------------------------------------- for the page
class _Figure(ExplorerFigure):
    """The front-end. Of the catalogue: names, the grid, each image as the model sees it, and `blocks` of places, which
    count on from the encoder to the LLM: the first place of each, and the first behind it.

    `numbers`: "image,block" -> what `_numbers` makes of them. The page keeps what it has once been given.
    """

    _esm = script("redundancy")
    _css = style("redundancy")
    numbers = traitlets.Dict().tag(sync=True)


def _places(recording: Recording) -> list[tuple[Stage, int]]:
    return [(stage, layer) for stage, states in recording.hidden.items() for layer in range(len(states))]


def _blocks(recording: Recording) -> list[list[int]]:
    """Places in blocks of about `PAIRS` pairs of patches: all in one for a small model."""
    places, patches = len(_places(recording)), int(np.prod(recording.grid))
    step = max(1, PAIRS // patches**2)
    return [[first, min(first + step, places)] for first in range(0, places, step)]


def _numbers(recording: Recording, first: int, stop: int) -> dict[str, Any]:
    """Of an image at some places.

    `cosines`: for each place, first as they are and then less the mean, what `tables.leftover` leaves of the cosines in
    hundredths, with `shares` for each. `others`: 16-bit numbers, P for each: of the same tables, the mean cosine of
    each patch to the others in hundredths, how many of these reach `LEAST`, and the group of each patch; then for each
    place the attention in tenths of the mean, zeros where there is none. Both are deflated.
    """
    shares, left, others, times = [], [], [], []
    before = dict[bool, np.ndarray]()
    for stage, layer in _places(recording)[first:stop]:
        x, paid = recording.hidden[stage][layer], recording.attention[stage]
        before = before if layer else {}
        for centred in (False, True):
            cosine = similarity(x, centred)
            table = hundredths(cosine.numpy())
            share, rest = leftover(table, before.get(centred))
            shares.append(share)
            left.append(rest)
            before[centred] = table
            mean, near = _to_others(cosine)
            others += [hundredths(mean.numpy()), near.numpy(), clusters(x, LEAST, centred).numpy()]
        relative = paid[layer] / paid[layer].mean() if layer < len(paid) else torch.zeros(len(x))
        times.append(np.rint(relative.double().numpy() * 10))
    numbers = packed(part.astype("<i2") for part in [*others, *times])
    return {"cosines": packed(left), "shares": shares, "others": numbers}


def _to_others(cosine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row of (P, P) cosines: the mean of the others, and how many of them reach `LEAST`."""
    others = cosine[~torch.eye(len(cosine), dtype=torch.bool)].view(len(cosine), -1)
    return others.mean(1), (others >= LEAST).sum(1)


class RedundancyExplorer(Explorer):
    """Pick a patch by a click or by its number; step through the layers of both stages.

    Every image is recorded once, when the explorer is made. In a small model its patches are compared in every layer at
    once, so that moving a control only looks things up, on the page itself; in a large one in a few layers at a time,
    when they are looked at. What is pointed at says its cosine, or lights up its group.

    Args:
        images: name -> image.
        question: what the model is asked; it matters for the attention in the LLM only.
        patch: the patch that is picked at first.

    Attributes:
        recordings: name -> `Recording`.
        settings: what is shown now: image, and keyword arguments of `redundancy_panels`.
        widget: what is displayed.

    Raises:
        LabError: no image, a patch that is not there, or as `record`.
    """

    def __init__(
        self, lab: Lab, images: Mapping[str, ImageLike], question: str = "What is it?", patch: int = 0
    ) -> None:
        if not isinstance(images, Mapping) or not images:
            example = "{'my photo': 'photo.jpg'}"
            raise LabError(f"images must name at least one image, for example {example}, got {images!r:.80}")
        self.recordings = {name: record(lab, image, question) for name, image in images.items()}
        self._seen = {name: seen_image(lab, image) for name, image in images.items()}
        super().__init__(
            _Figure(catalog=self._catalog()),
            {"image": next(iter(images)), "stage": "encoder", "layer": 0, "patch": patch, "centred": False,
             "third": "groups"},
        )  # fmt: skip
        keys = list(itertools.product(range(len(images)), range(len(self.widget.catalog["blocks"]))))
        for image, block in keys if len(keys) <= ROOM else ():
            self._need(image, block)
        self._look(self.widget.shown)
        self.widget.observe(lambda change: self._look(change["new"]), names="shown")

    def fitted(self, settings: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """As the page does: where the other stage has fewer layers, its last one."""
        one_of("image", settings["image"], tuple(self.recordings))
        one_of("stage", settings["stage"], tuple(STAGE_NAMES))
        if "layer" in asked:
            return settings
        return settings | {"layer": min(settings["layer"], self._depth(settings["stage"]))}

    def panels(self, image: str, **settings: Any) -> list[Panel]:
        """As `redundancy_panels`, of one of the images."""
        return redundancy_panels(self._seen[image], self.recordings[image], **settings)

    def _depth(self, stage: Stage) -> int:
        return len(next(iter(self.recordings.values())).hidden[stage]) - 1

    def describe(self, image: str, stage: Stage, layer: int, patch: int, centred: bool, third: str) -> str:
        """How like the picked patch the others are, in a sentence."""
        mean, near = _to_others(similarity(self.recordings[image].hidden[stage][layer], centred))
        last = layer == self._depth(stage)
        where = f"leaves the {STAGE_NAMES[stage]}" if last else f"enters layer {layer} of the {STAGE_NAMES[stage]}"
        average = hundredths(mean.numpy())[patch] / 100  # or a mean that is a little below zero would be -0.00
        return (
            f"{image}, what {where}: patch {patch} has cosine {average:.2f} to the others "
            f"on average, {near[patch]} of {len(mean) - 1} reach {LEAST} ({LIKENESS[centred]})"
        )

    def store(self) -> dict[str, Any]:
        """The same with the numbers of all layers, as text."""
        numbers = {
            f"{image},{block}": {**made, "cosines": _text(made["cosines"]), "others": _text(made["others"])}
            for image, recording in enumerate(self.recordings.values())
            for block, places in enumerate(self.widget.catalog["blocks"])
            for made in [_numbers(recording, *places)]
        }
        return {**super().store(), "numbers": numbers}

    # ---------------------------------------------------------------------------------------------- for the page
    def _look(self, shown: Mapping[str, Any]) -> None:
        """Have the numbers of what is shown."""
        place = _places(self.recordings[shown["image"]]).index((shown["stage"], shown["layer"]))
        blocks = self.widget.catalog["blocks"]
        block = next(number for number, (first, stop) in enumerate(blocks) if first <= place < stop)
        self._need(list(self.recordings).index(shown["image"]), block)

    def _need(self, image: int, block: int) -> None:
        """Have the numbers of a block; where there is no room, those that were asked for first go."""
        held, key = self.widget.numbers, f"{image},{block}"
        if key not in held:
            recording = list(self.recordings.values())[image]
            made = _numbers(recording, *self.widget.catalog["blocks"][block])
            self.widget.numbers = {**dict(list(held.items())[1 - ROOM :]), key: made}

    def _catalog(self) -> dict[str, Any]:
        one = next(iter(self.recordings.values()))
        stages = [
            {"stage": stage, "name": STAGE_NAMES[stage], "layers": len(states) - 1}
            for stage, states in one.hidden.items()
        ]
        images = [{"name": name, "seen": webp(seen)} for name, seen in self._seen.items()]
        third = [[name, words] for name, words in THIRD.items()]
        return {"grid": list(one.grid), "stages": stages, "third": third, "least": LEAST, "blocks": _blocks(one),
                "images": images}  # fmt: skip


def _text(packed: bytes) -> str:
    return base64.b64encode(packed).decode()
