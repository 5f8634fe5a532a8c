"""Pictures of what a strategy did to an image: who stayed, who was merged into whom, who is gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from illava_lab.errors import LabError
from illava_lab.models.images import ImageLike
from illava_lab.session.answer import Answer
from illava_lab.session.lab import Lab
from illava_lab.trace.sources import Sources
from illava_lab.trace.trace import Trace
from illava_lab.views.colors import LARGEST, grid_rgb
from illava_lab.views.seen import window_of
from illava_lab.views.words import as_label

CELL = 24  # pixels per patch in a picture
OUTLINE, TINT, LINE = 2, 0.6, (150, 150, 150)


def seen_image(lab: Lab, image: ImageLike) -> Image.Image:
    """The picture as the model sees it: resized and cropped by its processor. Of an image in crops, the whole one."""
    pixels = lab.inputs([image], ["What is it?"])["pixel_values"][0].float().cpu()
    pixels = pixels if pixels.dim() == 3 else pixels[0]
    processor = lab.processor.image_processor
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    return Image.fromarray(((pixels * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def token_picture(image: Image.Image, sources: Sources) -> Image.Image:
    """The image, in grey, under its visual tokens.

    A token has the colour of its place in the picture, the same in every picture of it. One that stands for several
    patches has these outlined; its own place has a white frame. The `LARGEST` largest groups, and all that are as large
    as the last of these, are filled with it. A patch that is a token by itself is left as it is. Patches that no token
    stands for are dark.

    Args:
        image: as the model sees it (`seen_image`).
        sources: of that image, from `Trace.sources`; of one in crops, `Sources.crop`.
    """
    rows, columns = sources.grid
    size = columns * CELL, rows * CELL
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.NEAREST)).astype(float)
    cells = np.repeat(grey.reshape(rows, CELL, columns, CELL).swapaxes(1, 2)[..., None], 3, axis=-1)
    owner = sources.owner().numpy()
    members = np.bincount(owner[owner >= 0], minlength=len(sources.anchor))
    groups = [int(group) for group in np.argsort(-members, kind="stable") if members[group] > 1]
    own = grid_rgb(sources.grid, window_of(sources.boxes.view(rows, columns, 4)))[sources.anchor.numpy()].astype(float)
    least = members[groups[:LARGEST]].min(initial=len(owner))
    filled = np.isin(owner, np.flatnonzero(members >= least)).reshape(rows, columns)
    color = own[owner.clip(0)].reshape(rows, columns, 1, 1, 3)
    cells[filled] = (1 - TINT) * cells[filled] + TINT * np.broadcast_to(color, cells.shape)[filled]
    cells[(owner < 0).reshape(rows, columns)] *= 0.15
    out = Image.fromarray(cells.swapaxes(1, 2).reshape(*size[::-1], 3).round().clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(out)
    for patch, group in enumerate(owner.tolist()):
        left, top = (part * CELL for part in divmod(patch, columns)[::-1])
        for beside, inside, side in _sides(patch, rows, columns):
            line = [left + side[0] * CELL, top + side[1] * CELL, left + side[2] * CELL, top + side[3] * CELL]
            if group >= 0 and members[group] > 1 and not (inside and owner[beside] == group):
                pen.line(line, fill=tuple(own[group].astype(int)), width=OUTLINE)
            elif group >= 0 and members[group] == 1:
                pen.line(line, fill=LINE)
    for group in groups:
        left, top = (part * CELL for part in divmod(int(sources.anchor[group]), columns)[::-1])
        box = left + 2, top + 2, left + CELL - 2, top + CELL - 2
        pen.rectangle(box, outline=(255, 255, 255), width=5)
        pen.rectangle(box, outline=tuple(own[group].astype(int)), width=2)
    return out


def _sides(patch: int, rows: int, columns: int) -> Iterator[tuple[int, bool, tuple[int, int, int, int]]]:
    """The patch beside each side of a patch, whether there is one, and where the side lies (in cells)."""
    row, column = divmod(patch, columns)
    yield patch - columns, row > 0, (0, 0, 1, 0)
    yield patch + columns, row < rows - 1, (0, 1, 1, 1)
    yield patch - 1, column > 0, (0, 0, 0, 1)
    yield patch + 1, column < columns - 1, (1, 0, 1, 1)


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


def to_png(figure: Figure, dpi: int = 90, colors: int | None = None) -> bytes:
    """The figure as PNG bytes, without a browser.

    Args:
        colors: with a palette of so many colours (2 to 256), a third as large; None for all of them.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue() if colors is None else png(Image.open(buffer).convert("RGB").quantize(colors))


def png(image: Image.Image) -> bytes:
    """A picture as PNG bytes."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def stacked(pngs: Sequence[bytes]) -> bytes:
    """PNGs one under the other, as wide as the widest, in one."""
    images = [Image.open(BytesIO(data)).convert("RGB") for data in pngs]
    width = max(image.width for image in images)
    images = [image.resize((width, round(image.height * width / image.width))) for image in images]
    return png(Image.fromarray(np.concatenate([np.asarray(image) for image in images])))
