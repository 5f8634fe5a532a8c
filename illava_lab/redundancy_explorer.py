"""Redundancy explorer: pick a patch, and see which others are like it in any layer."""

from __future__ import annotations

from collections.abc import Mapping

import ipywidgets
import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image
from torch.nn.functional import one_hot

from illava_lab.errors import LabError
from illava_lab.images import ImageLike
from illava_lab.lab import Lab
from illava_lab.panels import Panel, live, still
from illava_lab.pictures import seen_image, to_png, token_picture
from illava_lab.redundancy import Recording, clusters, record, similarity
from illava_lab.strategy import Stage, one_of
from illava_lab.trace import Sources
from illava_lab.widgets import PanelView, show_widget

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
        seen: the image as the model sees it (`illava_lab.pictures.seen_image`).
        recording: of that image.
        layer: what enters this layer; one more than the last for what leaves the stage.
        third: "groups" (cosine of `least` or more, without centring) or "attention".

    Raises:
        LabError: a stage, layer, patch or third panel that is not there.
    """
    one_of("stage", stage, tuple(recording.hidden))
    one_of("third", third, tuple(THIRD))
    states, (height, width) = recording.hidden[stage], recording.grid
    if not 0 <= layer < len(states):
        raise LabError(f"layer must be between 0 and {len(states) - 1} in the {stage}, got {layer!r}")
    if not 0 <= patch < height * width:
        raise LabError(f"patch must be between 0 and {height * width - 1}, got {patch!r}")
    x = states[layer]
    like = similarity(x, centred)[patch].view(height, width).numpy()
    number = np.arange(height * width).reshape(height, width)
    hover = np.vectorize(lambda i, s: f"patch {i}: row {i // width}, column {i % width}<br>cosine to patch {patch}: {s:.2f}")
    text = hover(number, like)
    middle = Panel(
        f"how like patch {patch} they are", recording.grid, values=like, limits=(-1.0, 1.0), legend=LIKENESS[centred],
        colors="RdBu_r", hover=text, frames=[patch],
    )  # fmt: skip
    picked = Panel("what the model sees", recording.grid, seen, hover=text, frames=[patch])
    return [picked, middle, _groups(seen, x, recording, least) if third == "groups" else _attention(recording, stage, layer)]


def _groups(seen: Image.Image, x: torch.Tensor, recording: Recording, least: float) -> Panel:
    """Patches of one group in one colour, each group framed where its first patch is."""
    label = clusters(x, least)
    member = one_hot(label).T.double()
    size, grid = member.sum(1), recording.grid
    place = torch.cartesian_prod(*(torch.arange(side) / side for side in grid)).flip(1)
    boxes = torch.cat([place, place + torch.tensor([1 / grid[1], 1 / grid[0]])], dim=1)
    sources = Sources(member / size[:, None], member.argmax(1), grid, boxes)
    hover = [f"patch {i}: in a group of {int(size[group])}" for i, group in enumerate(label)]
    picture = token_picture(seen, sources)
    return Panel(f"{len(size)} groups with cosine ≥ {least:g}", grid, picture, hover=np.array(hover).reshape(grid))


def _attention(recording: Recording, stage: Stage, layer: int) -> Panel:
    paid, grid = recording.attention[stage], recording.grid
    title = "attention that each patch receives" if stage == "encoder" else "attention of the last text token"
    if layer == len(paid):
        return Panel(title, grid, note="what leaves a stage<br>has no attention of its own")
    times = (paid[layer] / paid[layer].mean()).view(grid).numpy()
    hover = np.vectorize(lambda t: f"{t:.1f} times the mean patch")(times)
    return Panel(title, grid, values=times, limits=(0.0, max(5.0, float(times.max()))), legend="times the mean", hover=hover)


def redundancy_figure(seen: Image.Image, recording: Recording, **settings: object) -> go.Figure:
    """What the explorer shows, as a plotly figure: its plain-function twin. Settings as in `redundancy_panels`."""
    return live(redundancy_panels(seen, recording, **settings))


class RedundancyExplorer:
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

    def __init__(self, lab: Lab, images: Mapping[str, ImageLike], question: str = "What is it?", patch: int = 0) -> None:
        if not images:
            raise LabError("images must name at least one image, for example {'my photo': 'photo.jpg'}")
        self.recordings = {name: record(lab, image, question) for name, image in images.items()}
        self._seen = {name: seen_image(lab, image) for name, image in images.items()}
        first, patches = next(iter(images)), int(np.prod(next(iter(self.recordings.values())).grid))
        self._start = {"image": first, "stage": "encoder", "layer": 0, "patch": patch, "centred": False, "third": "groups"}
        narrow = ipywidgets.Layout(width="240px")
        self.image = ipywidgets.Dropdown(options=list(images), description="image", layout=narrow)
        self.stage = ipywidgets.Dropdown(options=[(v, k) for k, v in STAGE_NAMES.items()], description="stage", layout=narrow)
        self.layer = ipywidgets.IntSlider(max=self._depth("encoder"), description="layer", layout=ipywidgets.Layout(width="340px"))
        self.patch = ipywidgets.BoundedIntText(patch, 0, patches - 1, description="patch", layout=ipywidgets.Layout(width="160px"))
        self.centred = ipywidgets.Checkbox(description="remove the mean", indent=False, layout=ipywidgets.Layout(width="150px"))
        self.third = ipywidgets.Dropdown(
            options=[(v, k) for k, v in THIRD.items()], description="right", layout=ipywidgets.Layout(width="300px")
        )
        self.reset = ipywidgets.Button(description="Reset", layout=ipywidgets.Layout(width="80px"))
        self.text = ipywidgets.HTML()
        self.view = PanelView(self._panels(**self._start), self._pick)
        self._controls = {name: getattr(self, name) for name in self._start}
        self._quiet = False
        self.stage.observe(self._change_stage, names="value")
        for control in self._controls.values():
            control.observe(self._draw, names="value")
        self.reset.on_click(lambda _: self.set(**self._start))
        self.box = ipywidgets.VBox([
            ipywidgets.HBox([self.image, self.stage, self.layer]),
            ipywidgets.HBox([self.patch, self.centred, self.third, self.reset]),
            self.text,
            self.view.widget,
        ])  # fmt: skip
        self._draw()

    @property
    def settings(self) -> dict[str, object]:
        """What is shown now."""
        return {name: control.value for name, control in self._controls.items()}

    def set(self, **settings: object) -> None:
        """Move controls by name: image, stage, layer, patch, centred, third.

        Raises:
            LabError: no such control, or a value that it does not have.
        """
        for name in settings:
            one_of("control", name, tuple(self._controls))
        after = {**self.settings, **settings}
        one_of("image", after["image"], tuple(self.recordings))
        one_of("stage", after["stage"], tuple(STAGE_NAMES))
        if "layer" not in settings:  # as the slider does: the other stage may have fewer layers
            after["layer"] = min(after["layer"], self._depth(after["stage"]))
        self._panels(**after)  # refuses what is not there before anything moves
        self._quiet = True  # one drawing at the end, not one for each control
        for name in self._start:  # the stage before its layer, whose range depends on it
            self._controls[name].value = after[name]
        self._quiet = False
        self._draw()

    def show(self, **settings: object) -> None:
        """Display the explorer, with a picture of what it shows for viewers that have no kernel."""
        self.set(**settings)
        show_widget(self.box, to_png(still(self._panels(**self.settings))), self._describe())

    def _depth(self, stage: Stage) -> int:
        return len(next(iter(self.recordings.values())).hidden[stage]) - 1

    def _panels(self, image: str, **settings: object) -> list[Panel]:
        return redundancy_panels(self._seen[image], self.recordings[image], **settings)

    def _change_stage(self, change: dict) -> None:
        self.layer.max = self._depth(change["new"])

    def _pick(self, patch: int) -> None:
        self.patch.value = patch

    def _describe(self) -> str:
        now = self.settings
        recording = self.recordings[now["image"]]
        x = recording.hidden[now["stage"]][now["layer"]]
        like = similarity(x, now["centred"])[now["patch"]]
        others = torch.cat([like[: now["patch"]], like[now["patch"] + 1 :]])
        last = now["layer"] == self._depth(now["stage"])
        where = f"leaves the {STAGE_NAMES[now['stage']]}" if last else f"enters layer {now['layer']} of the {STAGE_NAMES[now['stage']]}"
        return (
            f"{now['image']}, what {where}: patch {now['patch']} has cosine {others.mean():.2f} to the others on average, "
            f"{int((others >= 0.9).sum())} of {len(others)} reach 0.9 ({LIKENESS[now['centred']]})"
        )

    def _draw(self, change: dict | None = None) -> None:
        if self._quiet:
            return
        self.view.update(self._panels(**self.settings))
        self.text.value = self._describe()
