"""Schedule designer: draw a schedule layer by layer; see its tokens, its FLOPs and the prefill time that they predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ipywidgets
import plotly.graph_objects as go
from matplotlib.figure import Figure
from plotly.subplots import make_subplots
from torch import nn

from illava_lab.errors import LabError, one_of
from illava_lab.models.families import describe
from illava_lab.schedules.flops import flops_by_layer
from illava_lab.schedules.presets import PRESETS
from illava_lab.schedules.schedule import Schedule
from illava_lab.views.pictures import to_png
from illava_lab.widgets.output import live_figure, show_widget, sync

PARTS = {"encoder": "image encoder", "projector": "projector", "llm": "LLM"}
COLORS = {"encoder": "#0072B2", "projector": "#009E73", "llm": "#D55E00"}
BARE = "#d9d9d9"
NOTHING = "no reduction"


# ---------------------------------------------------------------------------------------------- what a schedule costs
@dataclass(frozen=True)
class Forecast:
    """What a schedule costs in one prefill, from shapes alone. Scoring and merging are left out.

    Attributes:
        tokens: "encoder" and "llm" -> visual tokens of one image that enter each layer.
        patches: visual tokens before any reduction.
        flops: "encoder" (with its patch embedding), "projector", "llm" (with the head) -> share of the bare model's FLOPs.
        time: the same parts -> predicted share of the bare model's prefill time; empty without measured seconds.
    """

    tokens: dict[str, list[int]]
    patches: int
    flops: dict[str, float]
    time: dict[str, float]

    def __str__(self) -> str:
        text = f"{self.tokens['llm'][-1]} of {self.patches} visual tokens enter the last LLM layer; FLOPs {sum(self.flops.values()):.2f}"
        return text + (
            f", predicted prefill time {sum(self.time.values()):.2f} of the bare model's"
            if self.time
            else " of the bare model's"
        )


def forecast(
    model: nn.Module, schedule: Schedule | None = None, *, text_tokens: int, seconds: Mapping[str, float] | None = None
) -> Forecast:
    """Tokens, FLOPs and time of a schedule.

    Args:
        model: only shapes are read; it may be on the meta device.
        text_tokens: tokens of the prompt beside the visual ones.
        seconds: of the bare model, from `measure.stage_seconds`. Each part is predicted to take time in proportion to
            its FLOPs; what a part costs however few tokens there are (calls, hooks) makes real savings smaller.
    """
    bare, now = (
        _parts(flops_by_layer(model, plan, text_tokens=text_tokens)) for plan in (Schedule(), schedule or Schedule())
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


def _parts(flops: dict[str, list[float]]) -> dict[str, float]:
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
            showlegend=part == "projector", hovertemplate=name + ": %{customdata:.0f} % of the bare total<extra></extra>",
            customdata=heights,
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
        left.set_title(title, loc="left", fontsize=11)  # below the legend, where a title of the whole figure would lie
    return figure


# ---------------------------------------------------------------------------------------------- the widget
class ScheduleDesigner:
    """A slider for every layer: how many of the visual tokens that enter it are kept, in percent.

    Encoder layer i reduces inside layer i, so layer i+1 is the first with fewer; LLM layer K reduces before layer K. A move only
    evaluates a closed form; no model runs. Sliders work by mouse and, when focused, by arrow keys, Home and End; the
    fields "layer" and "percent" do the same.

    Args:
        text_tokens: tokens of the prompt beside the visual ones.
        seconds: from `measure.stage_seconds`, for the predicted time; None leaves it out.

    Attributes:
        sliders: (stage, layer) -> slider.
        presets: name -> the setting of a paper, scaled to this model.
    """

    def __init__(self, model: nn.Module, *, text_tokens: int = 10, seconds: Mapping[str, float] | None = None) -> None:
        self._model, self._text_tokens, self._seconds = model, text_tokens, seconds
        anatomy = describe(model)
        self._anatomy = anatomy
        self.presets = {NOTHING: Schedule(), **_presets(model)}
        places = [
            (stage, layer)
            for stage, first in (("encoder", 0), ("llm", 1))
            for layer in range(first, anatomy.depth(stage))
        ]
        self.sliders = {
            (stage, layer): ipywidgets.IntSlider(
                100, 5, 100, 1, orientation="vertical", readout=False,
                layout=ipywidgets.Layout(width="40px", height="130px"), style={"handle_color": COLORS[stage]},
            )
            for stage, layer in places
        }  # fmt: skip
        self._labels = {
            place: ipywidgets.HTML(layout=ipywidgets.Layout(width="40px")) for place in places
        }  # a vertical slider cuts off labels of its own
        self.preset = ipywidgets.Dropdown(
            options=list(self.presets), description="start from", layout=ipywidgets.Layout(width="300px")
        )
        # The sliders once more: their handles have no names that a screen reader could say.
        self.layer = ipywidgets.Dropdown(
            options=[(f"{PARTS[stage]} {layer}", (stage, layer)) for stage, layer in places],
            description="layer",
            layout=ipywidgets.Layout(width="220px"),
        )
        self.percent = ipywidgets.BoundedIntText(
            100, 5, 100, description="percent", layout=ipywidgets.Layout(width="160px")
        )
        self.reset = ipywidgets.Button(description="Reset", layout=ipywidgets.Layout(width="80px"))
        self.text = ipywidgets.HTML()
        self.widget = live_figure(schedule_figure(self.forecast))
        self._moving = False
        for slider in self.sliders.values():
            slider.observe(self._draw, names="value")
        self.preset.observe(lambda change: self.set(self.presets[change["new"]]), names="value")
        self.layer.observe(self._follow, names="value")
        self.percent.observe(self._type, names="value")
        self.reset.on_click(lambda _: self.set(NOTHING))
        row, narrow = (
            ipywidgets.Layout(flex_flow="row wrap", width="800px"),
            ipywidgets.Layout(width="46px", align_items="center"),
        )
        self.box = ipywidgets.VBox([
            ipywidgets.HBox([self.preset, self.layer, self.percent, self.reset]),
            ipywidgets.HTML("Percent kept at each layer (E: image encoder, L: LLM); scoring and merging are left out"),
            ipywidgets.HBox([ipywidgets.VBox([self._labels[place], slider], layout=narrow) for place, slider in self.sliders.items()], layout=row),
            self.text,
            self.widget,
        ])  # fmt: skip
        self._draw()

    @property
    def schedule(self) -> Schedule:
        """What is drawn now, to be given to `Lab.ask` or `attach`."""
        plans: dict[str, dict[int, float]] = {"encoder": {}, "llm": {}}
        for (stage, layer), slider in self.sliders.items():
            if slider.value < 100:
                plans[stage][layer] = slider.value / 100
        return Schedule(**plans)

    @property
    def forecast(self) -> Forecast:
        """What that costs."""
        return forecast(self._model, self.schedule, text_tokens=self._text_tokens, seconds=self._seconds)

    def set(self, schedule: Schedule | str) -> None:
        """Move the sliders to a schedule, or to a preset by name; fractions are rounded to whole percents.

        Raises:
            LabError: no such preset, a layer that has no slider, or a schedule that makes the picture smaller.
        """
        if isinstance(schedule, str):
            one_of("preset", schedule, tuple(self.presets))
            self.preset.value, schedule = schedule, self.presets[schedule]
        if schedule.image is not None:
            raise LabError(f"the designer has no slider for the image stage, got image={schedule.image!r}")
        values, counts = dict.fromkeys(self.sliders, 100), schedule.tokens(self._anatomy)
        for stage in ("encoder", "llm"):
            for layer, keep in schedule.plan(stage).items():
                if (stage, layer) not in values:
                    raise LabError(f"the designer has no slider for {stage} layer {layer}")
                if isinstance(keep, int):
                    keep /= counts[stage][layer if stage == "encoder" else layer - 1]  # of what the reduction finds
                values[stage, layer] = max(5, round(100 * keep))
        self._moving = True
        for place, value in values.items():
            self.sliders[place].value = value
        self._moving = False
        self._draw()

    def show(self, schedule: Schedule | str = NOTHING) -> None:
        """Display the designer at a schedule or preset, with a picture of it for viewers that have no kernel."""
        self.set(schedule)
        show_widget(self.box, to_png(schedule_picture(self.forecast)), str(self.forecast))

    def _draw(self, change: dict | None = None) -> None:
        if self._moving:  # several sliders move as one
            return
        plan = self.forecast
        new = schedule_figure(plan)
        with self.widget.batch_update():
            for old, trace in zip(self.widget.data, new.data, strict=True):
                old.update(trace.to_plotly_json(), overwrite=True)
        sync(self.widget)
        self.text.value = f"{plan}<br><code>{self.schedule!r}</code>"
        for (stage, layer), label in self._labels.items():
            label.value = f"<center><b>{stage[0].upper()}{layer}</b><br>{self.sliders[stage, layer].value}</center>"
        self._follow()

    def _follow(self, change: dict | None = None) -> None:
        """The field shows what the slider of its layer says."""
        self.percent.value = self.sliders[self.layer.value].value

    def _type(self, change: dict) -> None:
        self.sliders[self.layer.value].value = change["new"]


def _presets(model: nn.Module) -> dict[str, Schedule]:
    """The papers' settings that fit the depth of this model."""
    found = {}
    for name in PRESETS:
        try:
            found[name] = Schedule.preset(name, model)
        except LabError:  # more layers than the model has
            continue
    return found
