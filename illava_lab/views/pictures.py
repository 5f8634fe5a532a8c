"""Pictures of what a strategy did to an image: who stayed, who was merged into whom, who is gone."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from illava_lab.errors import LabError
from illava_lab.models.images import ImageLike
from illava_lab.session.answer import Answer
from illava_lab.session.lab import Lab
from illava_lab.trace.sources import Sources
from illava_lab.trace.trace import Trace
from illava_lab.views.words import as_label

# Okabe and Ito's colours, told apart also by colour-blind readers; black and grey are left for "gone".
GROUP_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
CELL = 24  # pixels per patch in a picture


def seen_image(lab: Lab, image: ImageLike) -> Image.Image:
    """The picture as the model sees it: resized and cropped by its processor. Of an image in crops, the whole one."""
    pixels = lab.inputs([image], ["What is it?"])["pixel_values"][0].float().cpu()
    pixels = pixels if pixels.dim() == 3 else pixels[0]
    processor = lab.processor.image_processor
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    return Image.fromarray(((pixels * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def token_picture(image: Image.Image, sources: Sources) -> Image.Image:
    """The image under its visual tokens.

    A token that stands for one patch shows that patch. Patches that were merged into one token share a colour, and
    the token's own place has a thick frame. Patches that no token stands for are dark.

    Args:
        image: as the model sees it (`seen_image`).
        sources: of that image, from `Trace.sources`; of one in crops, `Sources.crop`.
    """
    rows, columns = sources.grid
    picture = np.asarray(image.convert("RGB").resize((columns * CELL, rows * CELL), Image.Resampling.NEAREST)).astype(
        float
    )
    patches = picture.reshape(rows, CELL, columns, CELL, 3).swapaxes(1, 2).reshape(rows * columns, CELL, CELL, 3).copy()
    owner = sources.owner().numpy()
    members = np.bincount(owner[owner >= 0], minlength=len(sources.anchor))
    groups = {int(m): to_rgb(GROUP_COLORS[i % len(GROUP_COLORS)]) for i, m in enumerate(np.flatnonzero(members > 1))}
    for patch, survivor in enumerate(owner):
        if survivor < 0:
            patches[patch] = patches[patch].mean(axis=-1, keepdims=True) * 0.15 + 10
        elif int(survivor) in groups:
            patches[patch] = 0.45 * patches[patch] + 0.55 * 255 * np.array(groups[int(survivor)])
    tiled = patches.reshape(rows, columns, CELL, CELL, 3).swapaxes(1, 2).reshape(rows * CELL, columns * CELL, 3)
    out = Image.fromarray(tiled.round().clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(out)
    for line in range(1, rows):
        pen.line([(0, line * CELL), (out.width, line * CELL)], fill=(60, 60, 60))
    for line in range(1, columns):
        pen.line([(line * CELL, 0), (line * CELL, out.height)], fill=(60, 60, 60))
    for survivor in groups:
        row, column = divmod(int(sources.anchor[survivor]), columns)
        box = (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)
        pen.rectangle(box, outline=(0, 0, 0), width=5)
        pen.rectangle(box, outline=(255, 255, 255), width=2)
    return out


def after_stage(trace: Trace, stage: str, image: int = 0) -> Sources:
    """Provenance after the encoder ("encoder") or after the last LLM layer ("llm")."""
    encoder = sum(step.stage == "encoder" for step in trace.steps)
    return trace.sources(image, encoder if stage == "encoder" else None)


def reduction_figure(lab: Lab, image: ImageLike, answer: Answer, title: str = "") -> Figure:
    """Three panels: what the model sees, its tokens after the encoder, its tokens after the LLM."""
    seen = seen_image(lab, image)
    panels: list[tuple[str, Image.Image]] = [("what the model sees", seen)]
    for stage, name in (("encoder", "after the image encoder"), ("llm", "in the last LLM layer")):
        sources = after_stage(answer.trace, stage)
        panels.append((f"{name}: {len(sources.anchor)} tokens", token_picture(seen, sources.crop(0))))
    return side_by_side(panels, title)


def side_by_side(panels: Sequence[tuple[str, Image.Image]], title: str = "", size: float = 3.6) -> Figure:
    """A matplotlib figure of titled pictures in a row, each `size` inches wide.

    Raises:
        LabError: no pictures.
    """
    if not panels:
        raise LabError("panels must hold at least one picture with its title, got none")
    figure = Figure(figsize=(size * len(panels), size + (0.5 if title else 0.35)), layout="constrained")
    for axis, (name, picture) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(as_label(name), fontsize=11)
        axis.set_axis_off()
    if title:
        figure.suptitle(as_label(title), fontsize=13)
    return figure


def in_a_row(pictures: Sequence[Image.Image], gap: int = 4) -> Image.Image:
    """Pictures beside each other on white, as a question shows several or the frames of a video.

    Args:
        gap: pixels between them.

    Raises:
        LabError: no pictures.
    """
    if not pictures:
        raise LabError("pictures must hold at least one picture, got none")
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    row, left = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white"), 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width + gap
    return row


def to_png(figure: Figure, dpi: int = 90) -> bytes:
    """The figure as PNG bytes, without a browser."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
