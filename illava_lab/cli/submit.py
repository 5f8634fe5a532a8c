"""illava-lab submit: rows of the leaderboard out of the folder of a comparison."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from illava_lab import arguments as typed
from illava_lab.paths import quoted


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "submit",
        help="files for the leaderboard, from the folder of a comparison",
        description="Write a file for each finished row of a comparison: model, task, method, budget, machine, "
        "and what was measured. Nothing is sent anywhere: put the files into results/leaderboard/rows of a clone, and "
        "open a pull request.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the --out of illava-lab compare")
    parser.add_argument(
        "--out", type=typed.folder, metavar="FOLDER", help="where the files go (default: leaderboard in FOLDER)"
    )
    parser.add_argument("--by", metavar="NAME", help="who measured, as the leaderboard shows it (default: nobody)")
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Write the files, and say what to do with them."""
    from illava_lab.commands import note
    from illava_lab.measuring.leaderboard import submit

    out = options.out or options.folder / "leaderboard"
    written, failed = submit(options.folder, out, options.by)
    if failed:
        note(f"rows that failed are left out: {', '.join(failed)}")
    print(f"Written: {len(written)} files in {quoted(out)}")
    print("To add them: put them into results/leaderboard/rows of a clone, and open a pull request.")
    return 0
