"""One example small enough to check by hand: six tokens with two channels, on their way through the methods.

Each has a place in a row, a direction and a score. Chapter 02 carries them through iLLaVA's ramp, ToMe's matching,
token sizes, the composition of two steps and proportional attention; the maps are those of the real strategies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens
from illava_lab.views.colors import BLUE, GREY, RED, grid_rgb
from illava_lab.views.words import as_label

DEGREES = (0.0, 10.0, 35.0, 100.0, 15.0, 170.0)
SCORES = (0.30, 0.04, 0.22, 0.12, 0.26, 0.06)
X = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in DEGREES])


def step(strategy: str | Strategy, keep: int, after: TokenMap | None = None) -> TokenMap:
    """One reduction of the six tokens, or of what is left of them after another.

    A survivor's score is the mean of its tokens' scores, weighted like them.

    Raises:
        LabError: as the strategy's `map`.
    """
    x, score, size = X[None], torch.tensor([SCORES]), torch.ones(1, len(X))
    if after is not None:
        x, score, size = after.apply(x), after.apply(score[..., None])[..., 0], after.sizes(size)
    tokens = Tokens("encoder", x, keys=x, attention_received=score, size=size)
    return make_strategy(strategy).map(tokens, keep)


def flow_figure(steps: Sequence[TokenMap], title: str = "", weights: bool = True) -> Figure:
    """Tokens as squares, one row for each stage of the way, and lines as thick as the weights that lead down.

    A square has the colour of its anchor's place and says which of the six it stands for.

    Args:
        weights: False leaves open how much each line counts.

    Raises:
        LabError: no steps.
    """
    if not steps:
        raise LabError("steps must hold at least one token map, got none")
    colors = grid_rgb((1, len(X))) / 255
    figure = Figure(figsize=(6.6, 0.7 + 1.25 * len(steps)), layout="constrained")
    axes = figure.add_subplot(xlim=(-1.9, 5.6), ylim=(-len(steps) - 0.35, 0.35))
    axes.set_axis_off()
    place, whole = np.arange(len(X)), torch.eye(len(X), dtype=torch.float64)
    axes.text(-0.6, 0, "X", ha="right", va="center", fontsize=11)
    for row, one in enumerate(steps):
        matrix = one.matrix()[0]
        below = place[one.anchor[0].numpy()]
        for slot, source in matrix.nonzero().tolist():
            weight = float(matrix[slot, source])
            ends = [place[source], below[slot]], [-row - 0.21, -row - 0.79]
            axes.plot(
                *ends,
                color=colors[place[source]],
                linewidth=1 + 7 * weight if weights else 3,
                zorder=1,
                solid_capstyle="butt",
            )
            if weights and int((matrix[slot] != 0).sum()) > 1:
                middle = 0.8 * place[source] + 0.2 * below[slot], -row - 0.35
                axes.text(*middle, f"{weight:.2f}", fontsize=8, ha="center", va="center", zorder=4,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
        _squares(axes, place, range(len(place)), whole, colors, -row)
        place, whole = below, matrix @ whole
        name = "Y = W X" if len(steps) == 1 else f"after step {row + 1}"
        axes.text(-0.6, -row - 1, name, ha="right", va="center", fontsize=11)
    _squares(axes, place, range(len(place)), whole, colors, -len(steps))
    if title:
        figure.suptitle(as_label(title), fontsize=12)
    return figure


def _squares(axes, place, slots, whole: Tensor, colors, height: float) -> None:
    for slot in slots:
        held = whole[slot].nonzero()[:, 0].tolist()
        axes.scatter(place[slot], height, s=620, marker="s", color=colors[place[slot]], edgecolor="#333333", zorder=3,
                     linewidth=1 if len(held) == 1 else 2.2)  # fmt: skip
        text = "".join(map(str, held))
        axes.text(place[slot], height, text, ha="center", va="center", fontsize=11 if len(held) < 4 else 9, zorder=4)


def attention_shares(query: Tensor, reduction: TokenMap) -> dict[str, Tensor]:
    """Softmax shares that a query (2,) pays: to all six tokens, and to the survivors without and with their sizes.

    Returns:
        Label -> (M,) shares of the survivors. Of the six tokens those are added up that a survivor stands for.
    """
    keys, sizes = reduction.apply(X[None])[0], reduction.sizes(torch.ones(1, len(X)))[0]
    owner = (reduction.matrix()[0] != 0).double()
    before = (owner / owner.sum(0).clamp(min=1)) @ (X @ query).double().softmax(0)
    logits = keys @ query
    return {
        "six keys": before,
        "one key each": logits.softmax(0).double(),
        "+ log size": (logits + sizes.log()).softmax(0).double(),
    }


def shares_figure(shares: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """The same as bars: what each survivor gets, in each of the three cases."""
    figure = Figure(figsize=(6.6, 2.7), layout="constrained")
    axes = figure.add_subplot(ylabel="share of attention")
    for number, ((label, row), color) in enumerate(zip(shares.items(), (GREY, RED, BLUE), strict=True)):
        where = np.arange(len(row)) + 0.26 * (number - 1)
        bars = axes.bar(where, row, 0.24, color=color, label=label)
        axes.bar_label(bars, [f"{float(value):.2f}" for value in row], fontsize=8)
    axes.set_xticks(range(len(names)), list(names))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.2), fontsize=9)
    return figure
