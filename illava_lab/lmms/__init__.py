"""The lab as a model of lmms-eval, a harness of several hundred benchmarks, and the lab's tasks as its tasks.

Only `illava_lab.lmms.model` and `illava_lab.lmms.harness` import lmms_eval, which nothing else in the lab needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

MODEL = "illava_lab"
TASKS = Path(__file__).parent / "tasks"
"""The folder that lmms-eval takes as ``--include_path``."""


def manifest() -> Any:
    """What lmms-eval finds by the entry point: under which name, and in which class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path="illava_lab.lmms.model.IllavaLab")
