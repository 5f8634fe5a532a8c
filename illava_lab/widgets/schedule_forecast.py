"""What a schedule costs, from shapes alone, and how that looks: the schedule designer without its sliders."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real

import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots
from torch import nn

from illava_lab.errors import LabError
from illava_lab.models.families import describe
from illava_lab.schedules.flops import flops_by_layer
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import check_count
from illava_lab.views.colors import BARE, STAGES
from illava_lab.views.words import as_label

PARTS = {"encoder": "image encoder", "projector": "projector", "llm": "LLM"}
COLORS = STAGES


# ---------------------------------------------------------------------------------------------- what a schedule costs
@dataclass(frozen=True)
class Forecast:
    """What a schedule costs in one prefill, from shapes alone. Scoring and merging are left out.

    Attributes:
        tokens: "encoder" and "llm" -> visual tokens of one image that enter each layer.
        patches: visual tokens before any reduction.
        flops: "encoder" (with its patch embedding), "projector", "llm" (with the head) -> share of the bare model's
            FLOPs.
        time: the same parts -> predicted share of the bare model's prefill time; empty without measured seconds.
    """

    tokens: dict[str, list[int]]
    patches: int
    flops: dict[str, float]
    time: dict[str, float]

    def __str__(self) -> str:
        left = f"{self.tokens['llm'][-1]} of {self.patches} visual tokens enter the last LLM layer"
        costs = f"FLOPs {sum(self.flops.values()):.2f}"
        if self.time:
            costs += f", predicted prefill time {sum(self.time.values()):.2f}"
        return f"{left}; {costs} of the bare model's"


def forecast(
    model: nn.Module, schedule: Schedule | None = None, *, text_tokens: int, seconds: Mapping[str, float] | None = None
) -> Forecast:
    """Tokens, FLOPs and time of a schedule.

    Args:
        model: only shapes are read; it may be on the meta device.
        text_tokens: tokens of the prompt beside the visual ones.
        seconds: of the bare model, from `measure.stage_seconds`. Each part is predicted to take time in proportion to
            its FLOPs; what a part costs however few tokens there are (calls, hooks) makes real savings smaller.

    Raises:
        LabError: `text_tokens` is no whole number of at least 0, or `seconds` are not those of every part.
    """
    text_tokens = check_count("text_tokens", text_tokens, least=0)
    check_seconds(seconds)
    bare, now = (
        parts_of(flops_by_layer(model, plan, text_tokens=text_tokens)) for plan in (Schedule(), schedule or Schedule())
    )
    anatomy = describe(model)
    counts = (schedule or Schedule()).tokens(anatomy)
    time = {}
    if seconds is not None:
        whole = sum(seconds[part] for part in PARTS)
        time = {part: seconds[part] / whole * now[part] / bare[part] for part in PARTS}
    return Forecast(
        tokens={stage: counts[stage][:-1] for stage in ("encoder", "llm")},  # the last entry is what leaves the stage
        patches=anatomy.patches,
        flops={part: now[part] / sum(bare.values()) for part in PARTS},
        time=time,
    )


def check_seconds(seconds: Mapping[str, float] | None) -> None:
    """Raise LabError unless these are None, or times of every part."""
    if seconds is None:
        return
    good = isinstance(seconds, Mapping) and all(
        isinstance(seconds.get(part), Real) and 0 <= seconds[part] < math.inf for part in PARTS
    )
    if not good or not sum(seconds[part] for part in PARTS) > 0:
        raise LabError(f"seconds must be times of {', '.join(PARTS)}, as from measure.stage_seconds, got {seconds!r}")


def parts_of(flops: dict[str, list[float]]) -> dict[str, float]:
    """What `flops_by_layer` found, by the part that a reader knows."""
    total = {name: sum(layers) for name, layers in flops.items()}
    encoder = total["patches"] + total["encoder"] + total["pooling"]
    return {"encoder": encoder, "projector": total["projector"], "llm": total["llm"] + total["head"]}


# ---------------------------------------------------------------------------------------------- how it looks
def _bars(plan: Forecast) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Names of the layers, and the columns of the right-hand panel: name -> part -> percent."""
    names = [f"{stage[0].upper()}{layer}" for stage, counts in plan.tokens.items() for layer in range(len(counts))]
    columns = {"FLOPs": plan.flops} | ({"time": plan.time} if plan.time else {})
    return names, {column: {part: 100 * share for part, share in parts.items()} for column, parts in columns.items()}


def schedule_figure(plan: Forecast) -> go.Figure:
    """Tokens that enter every layer, and what is left of FLOPs and time: the plain-function twin of the designer."""
    names, columns = _bars(plan)
    figure = make_subplots(1, 2, column_widths=[0.7, 0.3], horizontal_spacing=0.12)
    figure.add_bar(
        row=1, col=1, x=names, y=[plan.patches] * len(names), marker_color=BARE, name="bare model", hoverinfo="skip"
    )
    for stage, counts in plan.tokens.items():
        own = [name for name in names if name[0] == stage[0].upper()]
        figure.add_bar(
            row=1, col=1, x=own, y=counts, marker_color=COLORS[stage], name=PARTS[stage],
            hovertemplate="%{y} visual tokens enter %{x}<extra></extra>",
        )  # fmt: skip
    figure.add_bar(
        row=1, col=2, x=list(columns), y=[100] * len(columns), marker_color=BARE, showlegend=False, hoverinfo="skip"
    )
    base = dict.fromkeys(columns, 0.0)
    for part, name in PARTS.items():
        heights = [parts[part] for parts in columns.values()]
        figure.add_bar(
            row=1, col=2, x=list(columns), y=heights, base=list(base.values()), marker_color=COLORS[part], name=name,
            showlegend=part == "projector", customdata=heights,
            hovertemplate=name + ": %{customdata:.0f} % of the bare total<extra></extra>",
        )  # fmt: skip
        base = {column: base[column] + parts[part] for column, parts in columns.items()}
    figure.update_layout(
        barmode="overlay", width=800, height=330, margin={"l": 60, "r": 10, "t": 40, "b": 40}, plot_bgcolor="white",
        legend={"orientation": "h", "y": 1.17, "x": 0}, bargap=0.15, dragmode=False,
    )  # fmt: skip
    figure.update_xaxes(type="category", fixedrange=True)
    figure.update_yaxes(gridcolor="#e5e5e5", fixedrange=True)
    figure.update_yaxes(title_text="visual tokens that enter", range=[0, plan.patches * 1.04], row=1, col=1)
    return figure.update_yaxes(title_text="% of the bare model", range=[0, 104], row=1, col=2)


def schedule_picture(plan: Forecast, title: str = "") -> Figure:
    """The same picture by matplotlib, which needs no browser."""
    names, columns = _bars(plan)
    figure = Figure(figsize=(8.6, 3.4 if title else 3.1), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[0.7, 0.3])
    left.bar(names, plan.patches, color=BARE, label="bare model")
    for stage, counts in plan.tokens.items():
        left.bar(
            [name for name in names if name[0] == stage[0].upper()], counts, color=COLORS[stage], label=PARTS[stage]
        )
    right.bar(list(columns), 100, color=BARE, width=0.6)
    for number, (column, parts) in enumerate(columns.items()):
        base = 0.0
        for part, height in parts.items():
            label = PARTS[part] if part == "projector" and not number else None
            right.bar([column], [height], bottom=base, color=COLORS[part], width=0.6, label=label)
            base += height
        right.text(number, base + 2, f"{base:.0f} %", ha="center", fontsize=9)
    left.set_ylabel("visual tokens that enter")
    right.set_ylabel("% of the bare model")
    right.set_ylim(0, 112)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9)
    if len(names) > 20:  # as many labels as there is room for
        left.set_xticks(range(0, len(names), len(names) // 12))
    if title:
        # Below the legend, where a title of the whole figure would lie.
        left.set_title(as_label(title), loc="left", fontsize=11)
    return figure
