"""Redundancy explorer: pick a patch, and see which others are like it in any layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image
from torch.nn.functional import one_hot

from illava_lab.errors import LabError, one_of
from illava_lab.measuring.redundancy import Recording, clusters, record, similarity
from illava_lab.method.tokens import Stage
from illava_lab.models.images import ImageLike
from illava_lab.session.lab import Lab
from illava_lab.trace.sources import Sources
from illava_lab.views.pictures import seen_image, token_picture
from illava_lab.widgets.explorer import Explorer
from illava_lab.widgets.panels import Panel, check_place, live

STAGE_NAMES: dict[Stage, str] = {"encoder": "image encoder", "llm": "LLM"}
LIKENESS = {False: "cosine", True: "cosine, mean removed"}
THIRD = {"groups": "groups of like patches", "attention": "attention in this layer"}


def redundancy_panels(
    seen: Image.Image,
    recording: Recording,
    stage: Stage = "encoder",
    layer: int = 0,
    patch: int = 0,
    centred: bool = False,
    third: str = "groups",
    least: float = 0.9,
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


class RedundancyExplorer(Explorer):
    """Pick a patch by a click or by its number; step through the layers of both stages.

    Every image is recorded once, when the explorer is made; moving a control only compares what is there.

    Args:
        images: name -> image.
        question: what the model is asked; it matters for the attention in the LLM only.
        patch: the patch that is picked at first.

    Attributes:
        recordings: name -> `Recording`.
        settings: what is shown now, as keyword arguments of `redundancy_panels`.
    """

    def __init__(
        self, lab: Lab, images: Mapping[str, ImageLike], question: str = "What is it?", patch: int = 0
    ) -> None:
        if not isinstance(images, Mapping) or not images:
            example = "{'my photo': 'photo.jpg'}"
            raise LabError(f"images must name at least one image, for example {example}, got {images!r:.80}")
        self.recordings = {name: record(lab, image, question) for name, image in images.items()}
        self._seen = {name: seen_image(lab, image) for name, image in images.items()}
        first, patches = next(iter(images)), int(np.prod(next(iter(self.recordings.values())).grid))
        narrow = ipywidgets.Layout(width="240px")
        self.image = ipywidgets.Dropdown(options=list(images), description="image", layout=narrow)
        self.stage = ipywidgets.Dropdown(
            options=[(v, k) for k, v in STAGE_NAMES.items()], description="stage", layout=narrow
        )
        self.layer = ipywidgets.IntSlider(
            max=self._depth("encoder"), description="layer", layout=ipywidgets.Layout(width="190px")
        )
        self.patch = ipywidgets.BoundedIntText(
            patch, 0, patches - 1, description="patch", layout=ipywidgets.Layout(width="160px")
        )
        self.centred = ipywidgets.Checkbox(
            description="remove the mean", indent=False, layout=ipywidgets.Layout(width="150px")
        )
        self.third = ipywidgets.Dropdown(
            options=[(v, k) for k, v in THIRD.items()],
            description="right panel",
            layout=ipywidgets.Layout(width="300px"),
        )
        self.stage.observe(self._change_stage, names="value")
        super().__init__(
            {"image": first, "stage": "encoder", "layer": 0, "patch": patch, "centred": False, "third": "groups"},
            rows=[("image", "stage", "layer"), ("patch", "centred", "third")],
        )

    def fitted(self, settings: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """As the slider does: where the other stage has fewer layers, its last one."""
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

    def _change_stage(self, change: dict[str, Any]) -> None:
        self.layer.max = self._depth(change["new"])

    def describe(self, image: str, stage: Stage, layer: int, patch: int, centred: bool, third: str) -> str:
        """How like the picked patch the others are, in a sentence."""
        like = similarity(self.recordings[image].hidden[stage][layer], centred)[patch]
        others = torch.cat([like[:patch], like[patch + 1 :]])
        last = layer == self._depth(stage)
        where = f"leaves the {STAGE_NAMES[stage]}" if last else f"enters layer {layer} of the {STAGE_NAMES[stage]}"
        return (
            f"{image}, what {where}: patch {patch} has cosine {others.mean():.2f} to the others on average, "
            f"{int((others >= 0.9).sum())} of {len(others)} reach 0.9 ({LIKENESS[centred]})"
        )
