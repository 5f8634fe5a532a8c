"""illava-lab: understand, measure and invent visual-token merging for large vision-language models."""

from illava_lab import pictures, plots, redundancy
from illava_lab.attach import attach
from illava_lab.chat import Chat, chat
from illava_lab.compare import compare, summary
from illava_lab.errors import LabError
from illava_lab.evaluate import load_task
from illava_lab.fidelity import fidelity
from illava_lab.images import read_image
from illava_lab.lab import Answer, Lab, load
from illava_lab.published import published
from illava_lab.registry import broken_plugins, get_strategy, register, strategies
from illava_lab.schedule import Schedule
from illava_lab.strategy import Paper, Scorer, Strategy, TokenMap, Tokens
from illava_lab.testing import check_strategy
from illava_lab.video import Video, read_video

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
