"""A run as one still picture, by matplotlib: what the machine shows where nothing moves."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from illava_lab.views.colors import BARE, STAGES, grid_rgb
from illava_lab.views.moves import State, states
from illava_lab.views.run import Run
from illava_lab.views.words import as_label

CELL, GAP, DOT, FRAME = 12, 1, 5, 2  # pixels
EMPTY, INK = (237, 236, 231), (22, 23, 26)
COLUMNS = 7


def run_words(run: Run) -> str:
    """What the picture of a run shows, in a sentence."""
    last = len(run["layers"]["stage"]) - 2
    left, tokens = run["layers"]["tokens"][last], run["bare_tokens"]
    share = sum(run["layers"]["flops"])
    how = f"{run['label']}, {run['budget']}" if run["moves"] else "no reduction"
    return (
        f"{run['question']} {how}: {left} of {tokens} tokens in the last LLM layer, {share:.0f} % of the FLOPs. "
        f"Answer: {run['answer']['text']}"
    )


def token_map(run: Run, state: State, view: int = 0) -> Image.Image:
    """The tokens of one place: a square where one stands, with a frame if it stands for several patches; a dot where a
    patch has melted into the token of its colour; nothing where it has fallen."""
    grids = _grids(run)
    first = sum(height * width for height, width in grids[:view])
    (height, width), colors = grids[view], _colors(run)
    canvas = np.empty((height * width, CELL, CELL, 3), np.uint8)
    canvas[:] = EMPTY
    owner, token = state.owner(), dict(zip(state.anchor.tolist(), range(len(state.anchor)), strict=True))
    members = np.bincount(owner[owner >= 0], minlength=len(state.anchor))
    dot = slice((CELL - GAP - DOT) // 2, (CELL - GAP + DOT) // 2)
    for patch in range(first, first + height * width):
        cell = canvas[patch - first, : CELL - GAP, : CELL - GAP]
        if patch in token:
            several = members[token[patch]] > 1
            cell[:] = INK if several else colors[patch]
            cell[FRAME:-FRAME, FRAME:-FRAME] = colors[patch]
        elif owner[patch] >= 0:
            cell[dot, dot] = colors[state.anchor[owner[patch]]]
    tiled = canvas.reshape(height, width, CELL, CELL, 3).swapaxes(1, 2).reshape(height * CELL, width * CELL, 3)
    return Image.fromarray(tiled)


def run_figure(run: Run, view: int = 0) -> Figure:
    """The picture, the tokens at every place where they change, FLOPs layer by layer, and the answer's likely words.

    Args:
        view: which of the pictures, crops or frames is shown.
    """
    layers, after = run["layers"], states(run)
    places = [move["at"] for move in run["moves"]] or [0]
    panels = [("picture", _decoded(run["views"][view]["picture"]))]
    panels += [(f"{_name(run, at)}: {layers['tokens'][at]}", token_map(run, after[at], view)) for at in places]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(9, 9 / COLUMNS * 1.2 * rows + 2.2), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=[9 / COLUMNS * 1.2 * rows, 1.9])
    above, below = (figure.add_subfigure(grid[row, 0]) for row in range(2))
    for number, axes in enumerate(above.subplots(rows, COLUMNS, squeeze=False).flat):
        axes.set_axis_off()
        if number < len(panels):
            axes.set_title(panels[number][0], fontsize=9)
            axes.imshow(panels[number][1])
    costs, words = below.subplots(1, 2, width_ratios=[2, 1])
    _costs(costs, run)
    _words(words, run)
    figure.suptitle(as_label(run_words(run)), fontsize=10)
    return figure


def _costs(axes: Axes, run: Run) -> None:
    layers = run["layers"]
    at = [i for i, stage in enumerate(layers["stage"]) if stage in ("encoder", "unused", "llm")]
    names = [_name(run, i) for i in at]
    axes.bar(names, [layers["bare"][i] for i in at], color=BARE)
    colors = [STAGES["llm" if layers["stage"][i] == "llm" else "encoder"] for i in at]
    axes.bar(names, [layers["flops"][i] for i in at], color=colors, width=0.55)
    axes.set_title("FLOPs of each layer, % of the bare model's (grey)", loc="left", fontsize=9)
    axes.tick_params(labelsize=8)
    if len(at) > 20:
        axes.set_xticks(range(0, len(at), len(at) // 12))
    axes.spines[["top", "right"]].set_visible(False)


def _words(axes: Axes, run: Run) -> None:
    words = (run["answer"]["words"] or [[]])[0][::-1]
    axes.barh([as_label(word) for word, _ in words], [100 * odds for _, odds in words], color="#333333")
    axes.set_xlim(0, 100)
    axes.set_title("most probable words, %", loc="left", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _name(run: Run, at: int) -> str:
    stage, layer = run["layers"]["stage"][at], run["layers"]["layer"][at]
    letter = {"encoder": "E", "unused": "E", "llm": "L"}.get(stage)
    return f"{letter}{layer}" if letter else stage


def _grids(run: Run) -> list[tuple[int, int]]:
    return [(view["grid"][0], view["grid"][1]) for view in run["views"]]


def _colors(run: Run) -> NDArray[np.uint8]:
    return np.concatenate([grid_rgb(tuple(view["grid"]), view["window"]) for view in run["views"]])


def _decoded(address: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB")
