"""What cannot be done with a model on this machine, and why: said by the sentence that refuses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from illava_lab.doctor.report import Report
from illava_lab.errors import LabError, reason
from illava_lab.hooks.attach import attach
from illava_lab.method.declared import declared
from illava_lab.method.registry import broken_plugins, make_strategy, strategies
from illava_lab.models.frames import check_takes_videos
from illava_lab.models.loading import check_arguments
from illava_lab.schedules.budget import Budget
from illava_lab.session.lab import Lab

BUDGET = Budget(keep=0.5)
PATIENCE = 60.0
"""Seconds that trying every strategy may take; where it would take longer only their layers are looked for."""


def list_unsupported(report: Report, lab: Lab, bare: Any) -> None:
    """Report it, a line each. `bare` is the question on the bare model, or None where it had no answer."""
    _refused(report, "videos", lambda: check_takes_videos(lab.model.config, "this model"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _refused(report, "quantize", lambda: check_arguments(device, "auto", None, "4bit"))
    if lab.model.device.type != "cuda":
        report.note("graphs", f"captured graphs change nothing on a {lab.model.device.type} device, only on cuda")
    else:
        _refused(report, "graphs", lambda: _enter(lab, "none", None, graphs=True))
    names = [
        name for name, cls in strategies().items() if name != "none" and "image" in declared(cls, "media", ("image",))
    ]
    run = bare is not None and bare.seconds * len(names) < PATIENCE
    refused: dict[str, list[str]] = {}
    for name in names:
        if why := _refusal(lab, name, bare if run else None):
            refused.setdefault(why, []).append(name)
    for why, who in refused.items():  # many are refused for one reason
        report.note(*((who[0], why) if len(who) == 1 else (f"{len(who)} strategies", f"{', '.join(who)}: {why}")))
    fine = len(names) - sum(map(len, refused.values()))
    how = "each ran once" if run else "their layers were looked for; they were not run"
    report.note("strategies", f"{fine} of {len(names)} for pictures reach {BUDGET} on this model ({how})")
    for plugin, wrong in broken_plugins().items():
        report.note("plug-ins", f"{plugin} could not be loaded: {wrong}")


def _refused(report: Report, what: str, check: Callable[[], None]) -> None:
    try:
        check()
    except LabError as error:
        report.note(what, str(error))


def _enter(lab: Lab, strategy: Any, schedule: Any, **how: Any) -> None:
    with attach(lab.model, strategy, schedule, **how):
        pass


def _refusal(lab: Lab, name: str, bare: Any) -> str:
    """Why one strategy does not work with this model; nothing where it does."""
    try:
        strategy = make_strategy(name)
        schedule = BUDGET.plan(strategy, lab.model)
        if bare is None:
            _enter(lab, strategy, schedule)
        else:
            with attach(lab.model, strategy, schedule), torch.no_grad():
                lab.model(**bare.inputs)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a stranger's strategy may fail in any way, even by sys.exit
        return reason(error)
    return ""
