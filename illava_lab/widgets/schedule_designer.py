"""Schedule designer: draw a schedule layer by layer; see what it costs, what it leaves of a picture, and the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ipywidgets
from torch import nn

from illava_lab.errors import LabError, one_of
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.models.images import ImageLike
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.presets import PRESETS
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import check_count
from illava_lab.session.lab import Lab
from illava_lab.views.pictures import stacked, to_png
from illava_lab.views.words import as_html
from illava_lab.widgets.output import live_figure, show_widget, sync
from illava_lab.widgets.schedule_forecast import (
    COLORS,
    PARTS,
    Forecast,
    check_seconds,
    forecast,
    schedule_figure,
    schedule_picture,
)
from illava_lab.widgets.schedule_outcome import Outcome

NOTHING = "no reduction"


class ScheduleDesigner:
    """A slider for every layer: how many of the visual tokens that enter it are kept, in percent.

    Encoder layer i reduces inside layer i, so layer i+1 is the first with fewer; LLM layer K reduces before layer K.
    Costs are a closed form. With a `Lab`, a picture and a question, the model also answers after each move. Sliders
    work by mouse and, when focused, by arrow keys, Home and End; the fields "layer" and "percent" do the same.

    Args:
        model: a `Lab`, or a model of which only shapes are read; that may be on the meta device.
        image, question: what the model of a `Lab` is asked under the schedule; without them only costs are shown.
        strategy: what reduces the tokens of that picture.
        text_tokens: tokens of the prompt beside the visual ones.
        seconds: from `measure.stage_seconds`, for the predicted time; None leaves it out.

    Attributes:
        sliders: (stage, layer) -> slider.
        presets: name -> the setting of a paper, scaled to this model.

    Raises:
        LabError: `text_tokens` is no whole number of at least 0, `seconds` are not those of every part, an image
            without its question or without a `Lab`, or as `Lab.ask`.
    """

    def __init__(
        self,
        model: nn.Module | Lab,
        image: ImageLike | None = None,
        question: str | None = None,
        strategy: str | Strategy = "illava",
        *,
        text_tokens: int = 10,
        seconds: Mapping[str, float] | None = None,
    ) -> None:
        text_tokens = check_count("text_tokens", text_tokens, least=0)
        check_seconds(seconds)
        self._outcome = _outcome(model, image, question, strategy)
        model = model.model if isinstance(model, Lab) else model
        self._model, self._text_tokens, self._seconds = model, text_tokens, seconds
        self._start: Schedule | str = NOTHING
        anatomy = describe(model)
        self._anatomy = anatomy
        self.presets = {NOTHING: Schedule(), **_presets(model)}
        places = [
            *(("encoder", layer) for layer in range(anatomy.depth("encoder"))),
            *(("llm", layer) for layer in range(1, anatomy.depth("llm"))),
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
        self.text = ipywidgets.HTML(
            layout=ipywidgets.Layout(min_height="60px")
        )  # or longer words would move what follows
        self.widget = live_figure(schedule_figure(self.forecast))
        self._moving = False
        for slider in self.sliders.values():
            slider.observe(self._draw, names="value")
        self.preset.observe(lambda change: self.set(self.presets[change["new"]]), names="value")
        self.layer.observe(self._follow, names="value")
        self.percent.observe(self._type, names="value")
        self.reset.on_click(lambda _: self.set(self._start))
        wrapped = ipywidgets.Layout(flex_flow="row wrap", width="800px")
        narrow = ipywidgets.Layout(width="46px", align_items="center")
        columns = [
            ipywidgets.VBox([self._labels[place], slider], layout=narrow) for place, slider in self.sliders.items()
        ]
        self.box = ipywidgets.VBox([
            ipywidgets.HBox([self.preset, self.layer, self.percent, self.reset]),
            ipywidgets.HTML("Percent kept at each layer (E: image encoder, L: LLM); scoring and merging are left out"),
            ipywidgets.HBox(columns, layout=wrapped),
            self.text,
            *([self._outcome.widget] if self._outcome else []),
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
        return Schedule(plans["encoder"], plans["llm"])

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
        if not isinstance(schedule, Plan):
            raise LabError(f"schedule must be a Schedule or the name of a preset, got {schedule!r}")
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
        self._start = schedule
        pictures, words = [schedule_picture(self.forecast)], [str(self.forecast)]
        if self._outcome:
            pictures.append(self._outcome.figure(self.schedule))
            words.append(self._outcome.words(self.schedule))
        show_widget(self.box, stacked([to_png(picture) for picture in pictures]), ". ".join(words))

    def _draw(self, change: dict[str, Any] | None = None) -> None:
        if self._moving:  # several sliders move as one
            return
        plan = self.forecast
        new = schedule_figure(plan)
        with self.widget.batch_update():
            for old, trace in zip(self.widget.data, new.data, strict=True):
                old.update(trace.to_plotly_json(), overwrite=True)
        sync(self.widget)
        self.text.value = f"{as_html(plan)}<br><code>{as_html(repr(self.schedule))}</code>"
        for (stage, layer), label in self._labels.items():
            label.value = f"<center><b>{stage[0].upper()}{layer}</b><br>{self.sliders[stage, layer].value}</center>"
        self._follow()
        if self._outcome:
            self._outcome.show(self.schedule)

    def _follow(self, change: dict[str, Any] | None = None) -> None:
        """The field shows what the slider of its layer says."""
        self.percent.value = self.sliders[self.layer.value].value

    def _type(self, change: dict[str, Any]) -> None:
        self.sliders[self.layer.value].value = change["new"]


def _outcome(model: Any, image: Any, question: Any, strategy: str | Strategy) -> Outcome | None:
    """What shows picture and answer, where there is something to ask."""
    if image is None and question is None:
        return None
    if not isinstance(model, Lab):
        raise LabError("image and question need a Lab, such as illava_lab.load(), in place of its model")
    if image is None or question is None:
        raise LabError(
            f"image and question must be given together, got {'no image' if image is None else 'no question'}"
        )
    return Outcome(model, image, question, strategy)


def _presets(model: nn.Module) -> dict[str, Schedule]:
    """The papers' settings that fit the depth of this model."""
    found = {}
    for name in PRESETS:
        try:
            schedule = Schedule.preset(name, model)
        except LabError:  # more layers than the model has
            continue
        if 0 not in schedule.llm:  # a place that has no slider
            found[name] = schedule
    return found
