"""What the explorers of an image share: controls in rows above panels, a reset, and a sentence on what is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ipywidgets

from illava_lab.errors import one_of
from illava_lab.views.pictures import to_png
from illava_lab.views.words import as_html
from illava_lab.widgets.output import live_figure, show_widget, sync
from illava_lab.widgets.panels import Panel, live, still


class Explorer:
    """Controls above panels. A subclass makes the controls, as attributes, and then calls this.

    Args:
        start: control -> its value at first; in an order in which they can be set one after the other.
        rows: the controls of each row, by name.
    """

    patch: ipywidgets.BoundedIntText

    def __init__(self, start: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> None:
        self._start = dict(start)
        self._controls = {name: getattr(self, name) for name in start}
        self._quiet = False
        self.reset = ipywidgets.Button(description="Reset", layout=ipywidgets.Layout(width="80px"))
        # Room for two lines: the panels below stay where they are when a sentence becomes longer.
        self.text = ipywidgets.HTML(layout=ipywidgets.Layout(min_height="60px"))
        self.view = PanelView(self.panels(**self._start), self._pick)
        for control in self._controls.values():
            control.observe(self._draw, names="value")
        self.reset.on_click(lambda _: self.set(**self._start))
        boxes = [ipywidgets.HBox([with_number(self._controls[name]) for name in row]) for row in rows]
        boxes[-1].children += (self.reset,)
        self.box = ipywidgets.VBox([*boxes, self.text, self.view.widget])
        self._draw()

    def panels(self, *args: Any, **settings: Any) -> list[Panel]:  # a subclass names its settings
        """What is drawn at these settings.

        Raises:
            LabError: a control has no such value.
        """
        raise NotImplementedError

    def describe(self, *args: Any, **settings: Any) -> str:
        """The same in a sentence."""
        raise NotImplementedError

    def fitted(self, settings: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """The settings, with what was not `asked` for moved to where the others allow it.

        Raises:
            LabError: a control has no such value.
        """
        return settings

    @property
    def settings(self) -> dict[str, Any]:
        """What is shown now: control -> value."""
        return {name: control.value for name, control in self._controls.items()}

    def set(self, **settings: Any) -> None:
        """Move controls by name.

        Raises:
            LabError: no such control, or a value that it does not have.
        """
        for name in settings:
            one_of("control", name, tuple(self._controls))
        after = self.fitted({**self.settings, **settings}, settings)
        self.panels(**after)  # refuses what is not there before anything moves
        self._quiet = True  # one drawing at the end, not one for each control
        for name, control in self._controls.items():
            control.value = after[name]
        self._quiet = False
        self._draw()

    def show(self, **settings: Any) -> None:
        """Display the explorer, with a picture of what it shows for viewers that have no kernel."""
        self.set(**settings)
        self._start = self.settings  # Reset goes where the reader began
        show_widget(self.box, to_png(still(self.panels(**self.settings))), self.describe(**self.settings))

    def _pick(self, patch: int) -> None:
        self.patch.value = patch

    def _draw(self, change: dict[str, Any] | None = None) -> None:
        if self._quiet:
            return
        self.view.update(self.panels(**self.settings))
        self.text.value = as_html(self.describe(**self.settings))


def with_number(control: ipywidgets.Widget) -> ipywidgets.Widget:
    """A slider beside a field for its number; any other control as it is.

    A slider's handle has no name that a screen reader could say. The field has one, and does the same.
    """
    if not isinstance(control, ipywidgets.IntSlider):
        return control
    field = ipywidgets.BoundedIntText(
        control.value,
        control.min,
        control.max,
        description=control.description,
        layout=ipywidgets.Layout(width="150px"),
    )
    for trait in ("max", "value"):
        ipywidgets.link((control, trait), (field, trait))
    control.description, control.readout = "", False
    return ipywidgets.HBox([field, control])


class PanelView:
    """Live panels: drawn anew in place, and a click on a cell is told.

    Args:
        panels: what is shown first. Later ones must be as many.
        on_click: called with the patch (raster order) whose cell was clicked, in whatever panel.

    Attributes:
        widget: the FigureWidget to display.
    """

    def __init__(self, panels: Sequence[Panel], on_click: Callable[[int], None]) -> None:
        self.widget = live_figure(live(panels))
        self._columns = panels[0].grid[1]
        for trace in self.widget.data:
            trace.on_click(lambda trace, points, state: self._clicked(points, on_click))

    def _clicked(self, points: Any, on_click: Callable[[int], None]) -> None:
        if points.ys:  # plotly also tells the traces that were not hit
            on_click(int(points.ys[0]) * self._columns + int(points.xs[0]))

    def update(self, panels: Sequence[Panel]) -> None:
        """Show other panels."""
        new = live(panels)
        with self.widget.batch_update():
            for old, trace in zip(self.widget.data, new.data, strict=True):
                old.update(trace.to_plotly_json(), overwrite=True)
            for part in ("images", "shapes", "annotations"):
                self.widget.layout[part] = new.layout[part]
        sync(self.widget)
