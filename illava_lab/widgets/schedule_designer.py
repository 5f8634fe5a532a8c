"""Schedule designer: draw a schedule layer by layer; see what it costs, what it leaves of a picture, and the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import traitlets
from torch import nn

from illava_lab.errors import LabError, one_of, reason
from illava_lab.measuring.rows import several
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Stage
from illava_lab.models.families import describe
from illava_lab.models.images import ImageLike
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.presets import PRESETS
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import check_count
from illava_lab.session.lab import Lab
from illava_lab.views.pictures import stacked, to_png
from illava_lab.widgets.front import script, style
from illava_lab.widgets.output import show_widget
from illava_lab.widgets.schedule_costs import costs
from illava_lab.widgets.schedule_forecast import (
    PARTS,
    Forecast,
    check_seconds,
    forecast,
    schedule_figure,
    schedule_picture,
)
from illava_lab.widgets.schedule_outcome import Outcome, single_cut

__all__ = ["NOTHING", "ScheduleDesigner", "forecast", "schedule_figure", "schedule_picture"]

NOTHING = "no reduction"
LEAST = 5  # percent that a slider keeps
CUTS = (80, 70, 60, 40, 20)  # percent kept at a single layer, of which a page without a kernel has picture and answer
STORED = 224  # pixels of a picture there


class _Figure(anywidget.AnyWidget):
    """The front-end. `catalog`: what can be moved and chosen, and the closed form of the costs; `start` and `shown`:
    percent of each slider at first and now; `answer`: picture and answer of `values`, or why there is none."""

    _esm = script("designer")
    _css = style("designer")
    catalog = traitlets.Dict().tag(sync=True)
    start: traitlets.List[int] = traitlets.List().tag(sync=True)
    shown: traitlets.List[int] = traitlets.List().tag(sync=True)
    answer = traitlets.Dict().tag(sync=True)


class ScheduleDesigner:
    """A slider for every layer: how many of the visual tokens that enter it are kept, in percent.

    Encoder layer i reduces inside layer i, so layer i+1 is the first with fewer; LLM layer K reduces before layer K.
    Costs are a closed form, which the page computes while a slider moves. With a `Lab`, a picture and a question, the
    model also answers after each move. Sliders work by mouse and, when focused, by arrow keys, Page Up and Page Down,
    Home and End.

    Args:
        model: a `Lab`, or a model of which only shapes are read; that may be on the meta device.
        image, question: what the model of a `Lab` is asked under the schedule; without them only costs are shown.
        strategy: what reduces the tokens of that picture.
        text_tokens: tokens of the prompt beside the visual ones.
        seconds: from `measure.stage_seconds`, for the predicted time; None leaves it out.

    Attributes:
        presets: name -> the setting of a paper, scaled to this model.
        widget: what is displayed.

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
        self._anatomy = describe(model)
        self._places: list[tuple[Stage, int]] = [
            *(("encoder", layer) for layer in range(self._anatomy.depth("encoder"))),
            *(("llm", layer) for layer in range(1, self._anatomy.depth("llm"))),
        ]
        self.presets = {NOTHING: Schedule(), **_presets(model)}
        nothing = self._values(Schedule())
        self.widget = _Figure(catalog=self._catalog(), start=nothing, shown=nothing)
        self._answer()
        self.widget.observe(lambda change: self._answer(), names="shown")

    @property
    def schedule(self) -> Schedule:
        """What is drawn now, to be given to `Lab.ask` or `attach`."""
        return self._schedule(self.widget.shown)

    @property
    def forecast(self) -> Forecast:
        """What that costs."""
        return forecast(self._model, self.schedule, text_tokens=self._text_tokens, seconds=self._seconds)

    def set(self, schedule: Schedule | str) -> None:
        """Move the sliders to a schedule, or to a preset by name; fractions are rounded to whole percents.

        Raises:
            LabError: no such preset, a layer that has no slider, or a schedule that makes the picture smaller.
        """
        self.widget.shown = self._values(schedule)

    def show(self, schedule: Schedule | str = NOTHING) -> None:
        """Display the designer at a schedule or preset, with a picture of it for viewers that have no kernel."""
        self.set(schedule)
        self.widget.start = self.widget.shown
        pictures, words = [schedule_picture(self.forecast)], [str(self.forecast)]
        if self._outcome:
            pictures.append(self._outcome.figure(self.schedule))
            words.append(self._outcome.words(self.schedule))
        show_widget(self.widget, stacked([to_png(picture) for picture in pictures]), ". ".join(words))

    def store(self, schedules: Sequence[Schedule | str] | None = None) -> dict[str, Any]:
        """All that a page without a kernel needs; `illava.designer.mount(element, stored)` takes it.

        Args:
            schedules: of which the page has picture and answer, or names of presets; what is shown now is one of them
                in any case. None for the presets, and for single layers of both stages that keep 80 to 20 %.
                What the strategy refuses is left out.

        Returns:
            catalog and start, as the widget has them; `answers`, each with the `values` of the sliders and the numbers
            of its pictures in `images`, which hold each picture once.

        Raises:
            LabError: as `set`.
        """
        wanted = self._stored() if schedules is None else [self._values(one) for one in several("schedules", schedules)]
        images: dict[str, int] = {}
        answers = []
        for values in dict.fromkeys(map(tuple, [self.widget.shown, *wanted])):
            if self._outcome is None:
                break
            try:
                answer = self._outcome.page(self._schedule(values), STORED)
            except LabError:  # the page has the reason
                continue
            for panel in answer["panels"]:
                panel["image"] = images.setdefault(panel.pop("address"), len(images))
            answers.append({"values": list(values), **answer})
        return {
            "catalog": self.widget.catalog, "start": self.widget.shown, "answers": answers, "images": list(images),
        }  # fmt: skip

    # ---------------------------------------------------------------------------------------------- as numbers
    def _catalog(self) -> dict[str, Any]:
        seconds = self._seconds
        return {
            "names": PARTS,
            "patches": self._anatomy.patches,
            "depth": {"encoder": self._anatomy.depth("encoder"), "llm": self._anatomy.depth("llm")},
            "places": self._places,
            "least": LEAST,
            "costs": costs(self._model, text_tokens=self._text_tokens),
            "seconds": None if seconds is None else {part: float(seconds[part]) for part in PARTS},
            "presets": [{"name": name, "values": self._values(one)} for name, one in self.presets.items()],
            "outcome": self._outcome.catalog(self._places) if self._outcome else None,
        }

    def _values(self, schedule: Schedule | str) -> list[int]:
        """Percent of each slider, in the order of the places."""
        if isinstance(schedule, str):
            one_of("preset", schedule, tuple(self.presets))
            schedule = self.presets[schedule]
        if not isinstance(schedule, Plan):
            raise LabError(f"schedule must be a Schedule or the name of a preset, got {schedule!r}")
        if schedule.image is not None:
            raise LabError(f"the designer has no slider for the image stage, got image={schedule.image!r}")
        values, counts = dict.fromkeys(self._places, 100), schedule.tokens(self._anatomy)
        stages: tuple[Stage, ...] = ("encoder", "llm")
        for stage in stages:
            for layer, keep in schedule.plan(stage).items():
                if (stage, layer) not in values:
                    raise LabError(f"the designer has no slider for {stage} layer {layer}")
                if isinstance(keep, int):
                    keep /= counts[stage][layer if stage == "encoder" else layer - 1]  # of what the reduction finds
                values[stage, layer] = max(LEAST, round(100 * keep))
        return list(values.values())

    def _schedule(self, values: Sequence[int]) -> Schedule:
        plans: dict[Stage, dict[int, float]] = {"encoder": {}, "llm": {}}
        for (stage, layer), value in zip(self._places, values, strict=True):
            if value < 100:
                plans[stage][layer] = value / 100
        return Schedule(plans["encoder"], plans["llm"])

    def _stored(self) -> list[list[int]]:
        """The presets, and cuts at the first and the last slider of each stage."""
        cuts = []
        stages: tuple[Stage, ...] = ("encoder", "llm")
        for stage in stages:
            own = [layer for at, layer in self._places if at == stage]
            for layer in dict.fromkeys(own[at] for at in (0, -1)) if own else ():
                cuts += [single_cut(stage, layer, percent / 100) for percent in CUTS]
        return [self._values(one) for one in (*self.presets.values(), *cuts)]

    def _answer(self) -> None:
        """The sliders stand somewhere else: the page waits for picture and answer, or for a reason."""
        if self._outcome is None:
            return
        answer: dict[str, Any] = {"values": self.widget.shown}
        try:
            answer |= self._outcome.page(self.schedule)
        except KeyboardInterrupt:
            answer["error"] = "interrupted"
        except Exception as error:  # whatever it is, the page waits for a word
            answer["error"] = str(error) if isinstance(error, LabError) else reason(error)
        self.widget.answer = answer


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
