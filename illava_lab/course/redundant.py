"""Chapter 01: four pictures, and how alike their tokens are, with and without what all tokens have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from illava_lab.course.pictures import lines
from illava_lab.measuring.redundancy import (
    Recording,
    by_distance,
    clusters,
    effective_rank,
    mean_similarity,
    similarity,
)
from illava_lab.method.tokens import Stage
from illava_lab.widgets import redundancy_panels, still

PLACES: dict[str, tuple[Stage, int]] = {
    "enter the encoder": ("encoder", 0),
    "leave the encoder": ("encoder", -1),
    "enter the LLM": ("llm", 0),
}
LINES = (
    "Tea, green, 250 g      4.20",
    "Cups, set of six      18.00",
    "Kettle, steel      31.50",
    "Shipping      5.30",
    "Total      59.00",
)


def four_pictures(scene: Image.Image) -> dict[str, Image.Image]:
    """A scene of the test set, a photograph (flickr.com/photos/vultilion, CC BY 2.0), an invoice, and a grey card."""
    from sklearn.datasets import load_sample_image  # takes a second to import

    page = Image.new("RGB", (448, 448), "white")
    pen = ImageDraw.Draw(page)
    pen.text((40, 30), "Invoice 2041", font=ImageFont.load_default(44), fill="black")
    for i, line in enumerate(LINES):
        pen.text((40, 120 + 56 * i), line, font=ImageFont.load_default(30), fill="black")
    photograph = Image.fromarray(load_sample_image("flower.jpg"))
    card = Image.new("RGB", (112, 112), "grey")
    return {"scene": scene, "photograph": photograph, "document": page, "grey card": card}


def groups_figure(seen: Image.Image, recording: Recording) -> Figure:
    """Groups of like patches (mean removed) at the three places."""
    panels = []
    for name, (stage, layer) in PLACES.items():
        number = layer % len(recording.hidden[stage])
        groups = redundancy_panels(seen, recording, stage, number, centred=True)[2]
        count = groups.title.partition(" with")[0]
        panels.append(replace(groups, title=f"tokens that {name}:<br>{count}"))
    return still(panels)


def twins(recording: Recording, patch: int, centred: bool) -> dict[str, int]:
    """How many other tokens have a cosine of 0.9 or more to this one, at each place."""
    rows = {name: similarity(recording.hidden[stage][i], centred)[patch] for name, (stage, i) in PLACES.items()}
    return {name: int((row >= 0.9).sum()) - 1 for name, row in rows.items()}


def groups(recordings: Mapping[str, Recording], centred: bool) -> pd.DataFrame:
    """Number of groups with a cosine of 0.9 or more: a row for each place, a column for each picture."""
    count = {
        picture: {name: int(clusters(one.hidden[s][i], 0.9, centred).max()) + 1 for name, (s, i) in PLACES.items()}
        for picture, one in recordings.items()
    }
    return pd.DataFrame(count)


def falls(recordings: Mapping[str, Recording], layer: int) -> dict[str, torch.Tensor]:
    """Mean cosine of patches 1, 2, 3 ... apart in what enters an encoder layer, for each picture."""
    return {
        name: by_distance(similarity(one.hidden["encoder"][layer]), one.grid).float()
        for name, one in recordings.items()
    }


def falls_figure(rows: Mapping[str, torch.Tensor]) -> Figure:
    """The same as lines."""
    return lines(rows, range(1, 14), "distance, in patches", "mean cosine")


def noise_table(count: int = 196, channels: int = 160) -> pd.DataFrame:
    """Random vectors, and the same with one direction in common: what a cosine and a rank make of them."""
    noise = torch.randn(count, channels, generator=torch.Generator().manual_seed(0))
    rows = {}
    for name, x in {"noise": noise, "noise + 3": noise + 3}.items():
        rows[name] = {
            "mean cosine": mean_similarity(x),
            "groups": int(clusters(x, 0.85).max()) + 1,
            "groups, mean removed": int(clusters(x, 0.85, True).max()) + 1,
            "rank, mean removed": effective_rank(x, centred=True),
        }
    return pd.DataFrame(rows).T.round(2)


def attention_figure(seen: Image.Image, word: torch.Tensor, digit: torch.Tensor) -> Figure:
    """What the last text token pays to each patch in LLM layers 0 and 1, (layers, N) for each of two questions."""
    grey, side = seen.convert("L"), int(word.shape[1] ** 0.5)
    figure = Figure(figsize=(10.4, 3.0), layout="constrained")
    panels = [(name, layer, row[layer]) for layer in (0, 1) for name, row in (("the word", word), ("the digit", digit))]
    for axes, (name, layer, paid) in zip(figure.subplots(1, 4), panels, strict=True):
        times = (paid / paid.mean()).view(side, -1)
        axes.imshow(grey, extent=(0, side, side, 0), cmap="gray", alpha=0.5)
        shown = axes.imshow(times, extent=(0, side, side, 0), cmap="magma", vmin=0, alpha=0.75)
        figure.colorbar(shown, ax=axes, shrink=0.75)
        axes.set_title(f"layer {layer}, asked for {name}", fontsize=10)
        axes.set_axis_off()
    figure.suptitle("attention of the last text token, times the mean", fontsize=11)
    return figure
