"""What the explorers of an image share: settings that are moved on the page or from here, and a picture of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anywidget
import traitlets

from illava_lab.errors import one_of
from illava_lab.views.pictures import to_png
from illava_lab.widgets.output import show_widget
from illava_lab.widgets.panels import Panel, still


class ExplorerFigure(anywidget.AnyWidget):
    """A front-end. `catalog`: all that can be shown; `start` and `shown`: settings at first and now."""

    catalog = traitlets.Dict().tag(sync=True)
    start = traitlets.Dict().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)


class Explorer:
    """An explorer whose page has everything that it can show. A subclass says what that is.

    Args:
        widget: the front-end, with its catalogue.
        start: setting -> its value at first.

    Attributes:
        widget: what is displayed.

    Raises:
        LabError: a setting has no such value.
    """

    def __init__(self, widget: ExplorerFigure, start: Mapping[str, Any]) -> None:
        self.panels(**start)
        self.widget = widget
        widget.start = widget.shown = dict(start)

    def panels(self, *args: Any, **settings: Any) -> list[Panel]:  # a subclass names its settings
        """What is drawn at these settings.

        Raises:
            LabError: a setting has no such value.
        """
        raise NotImplementedError

    def describe(self, *args: Any, **settings: Any) -> str:
        """The same in a sentence."""
        raise NotImplementedError

    def fitted(self, settings: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """The settings, with what was not `asked` for moved to where the others allow it.

        Raises:
            LabError: a setting has no such value.
        """
        return settings

    @property
    def settings(self) -> dict[str, Any]:
        """What is shown now: setting -> value."""
        return dict(self.widget.shown)

    def set(self, **settings: Any) -> None:
        """Show something else; what is not named stays.

        Raises:
            LabError: no such setting, or a value that it does not have.
        """
        before = self.settings
        for name in settings:
            one_of("control", name, tuple(before))
        after = self.fitted({**before, **settings}, settings)
        self.panels(**after)  # refuses what is not there before anything moves
        # The page reads JSON, which has no numbers of numpy.
        self.widget.shown = {name: type(before[name])(value) for name, value in after.items()}

    def show(self, **settings: Any) -> None:
        """Display the explorer, with a picture of what it shows for viewers that have no kernel."""
        self.set(**settings)
        self.widget.start = self.widget.shown  # Reset goes where the reader began
        show_widget(self.widget, to_png(still(self.panels(**self.settings))), self.describe(**self.settings))

    def store(self) -> dict[str, Any]:
        """All that a page without a kernel needs; `mount(element, stored)` of its front-end takes it."""
        return {"catalog": self.widget.catalog, "start": self.widget.shown}
