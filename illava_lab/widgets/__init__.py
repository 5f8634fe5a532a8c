"""Widgets: thin views on computed data. Each has a plain-function twin, and a picture for readers without a kernel."""

from illava_lab.widgets.keep_slider import KeepSlider
from illava_lab.widgets.merge_explorer import MergeExplorer
from illava_lab.widgets.output import show_figure, show_plot, show_widget
from illava_lab.widgets.redundancy_explorer import RedundancyExplorer
from illava_lab.widgets.schedule_designer import ScheduleDesigner
from illava_lab.widgets.tradeoff_explorer import TradeoffExplorer

__all__ = [
    "KeepSlider",
    "MergeExplorer",
    "RedundancyExplorer",
    "ScheduleDesigner",
    "TradeoffExplorer",
    "show_figure",
    "show_plot",
    "show_widget",
]
