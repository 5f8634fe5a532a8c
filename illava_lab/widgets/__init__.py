"""Widgets: thin views on computed data. Each has a plain-function twin, and a picture for readers without a kernel."""

from illava_lab.widgets.keep_slider import KeepSlider
from illava_lab.widgets.machine import Machine
from illava_lab.widgets.merge_explorer import MergeExplorer, merge_figure
from illava_lab.widgets.output import show_figure, show_plot, show_widget
from illava_lab.widgets.panels import still
from illava_lab.widgets.redundancy_explorer import RedundancyExplorer, redundancy_figure, redundancy_panels
from illava_lab.widgets.schedule_designer import ScheduleDesigner
from illava_lab.widgets.schedule_forecast import BARE, COLORS, PARTS, forecast, schedule_figure, schedule_picture
from illava_lab.widgets.tradeoff_explorer import TradeoffExplorer, lost_picture, tradeoff_figure
from illava_lab.widgets.tradeoff_run import lost, read_run, right, within

__all__ = [
    "BARE",
    "COLORS",
    "PARTS",
    "KeepSlider",
    "Machine",
    "MergeExplorer",
    "RedundancyExplorer",
    "ScheduleDesigner",
    "TradeoffExplorer",
    "forecast",
    "lost",
    "lost_picture",
    "merge_figure",
    "read_run",
    "redundancy_figure",
    "redundancy_panels",
    "right",
    "schedule_figure",
    "schedule_picture",
    "show_figure",
    "show_plot",
    "show_widget",
    "still",
    "tradeoff_figure",
    "within",
]
