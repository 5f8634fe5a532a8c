"""illava-lab: understand, measure and invent visual-token merging for large vision-language models."""

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.measuring import redundancy
from illava_lab.measuring.compare import compare, summary
from illava_lab.measuring.fidelity import fidelity
from illava_lab.measuring.published import published
from illava_lab.measuring.tasks import load_task
from illava_lab.method.registry import broken_plugins, get_strategy, register, strategies
from illava_lab.method.strategy import Paper, Scorer, Strategy, TokenMap, Tokens
from illava_lab.models.images import read_image
from illava_lab.models.video import Video, read_video
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.chat import Chat, chat
from illava_lab.session.lab import Answer, Lab, load
from illava_lab.testing import check_strategy
from illava_lab.views import pictures, plots

__all__ = [
    "Answer",
    "Chat",
    "Lab",
    "LabError",
    "Paper",
    "Schedule",
    "Scorer",
    "Strategy",
    "TokenMap",
    "Tokens",
    "Video",
    "attach",
    "broken_plugins",
    "chat",
    "check_strategy",
    "compare",
    "fidelity",
    "get_strategy",
    "load",
    "load_task",
    "pictures",
    "plots",
    "published",
    "read_image",
    "read_video",
    "redundancy",
    "register",
    "strategies",
    "summary",
]
