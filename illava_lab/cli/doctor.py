"""illava-lab doctor: does the lab work here, with this model; what a bug report wants to know."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from illava_lab.cli.shared import add_place
from illava_lab.session.starting import PROGRAM


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "doctor",
        help="does the lab work here, with this model; for bug reports",
        description="Look at versions, devices and memory, load the model, try what must hold for it, answer one "
        "question with half of the visual tokens, and list what is not supported here, and why. Needs no network "
        "unless MODEL is a hub id that is not in the local cache. Exit status 1 if something failed. Put what it "
        "prints into a bug report.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL",
        help=f"as --model of {PROGRAM} ask: folder, hub id, embedded:NAME or random:NAME (default: the embedded model)",
    )  # fmt: skip
    add_place(parser)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the report; 1 if something failed."""
    from illava_lab.doctor.report import Report
    from illava_lab.doctor.surroundings import look_around

    report = Report()
    look_around(report)
    report.section(f"Model {options.model or 'embedded'}")
    # What fails on a broken installation is an import, so that has to be part of what is tried.
    report.attempt("loads", lambda: _examine(report, options))
    report.conclude()
    return 1 if report.failed else 0


def _examine(report: Any, options: Namespace) -> None:
    from illava_lab.commands import quiet
    from illava_lab.doctor.examination import examine

    quiet()
    place = {name: getattr(options, name) for name in ("device", "dtype", "device_map", "quantize", "revision")}
    examine(report, options.model, place)
