"""The command line: illava-lab lab | ask | compare | bench | check | strategies | presets | doctor | submit.

The words are those of Python. Here is what can be typed; `illava_lab.arguments` refuses what cannot be,
`illava_lab.commands` does the work; newer commands are a file each in `illava_lab.cli`. Nothing loads torch before
that, so help and mistakes are answered at once.

Exit status: 0 on success, 1 where `check` finds a broken promise or `doctor` a fault, 2 on bad usage with one line that
names the mistake, 130 when interrupted with Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from illava_lab import arguments as typed
from illava_lab.cli import doctor, shared, submit
from illava_lab.cli.shared import Parser
from illava_lab.errors import LabError, reason, spelled
from illava_lab.measuring.task_names import ONE_PICTURE, OTHERS
from illava_lab.paths import EMBEDDED_MODELS
from illava_lab.session import starting
from illava_lab.session.starting import PROGRAM
from illava_lab.session.threads import wait_passively

COMPARED = ["none", "random", "fastv", "tome", "illava"]
TIMED = ["fastv", "tome", "visionzip", "illava"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; without arguments, as the program that was started."""
    options = argparse.Namespace()
    if arguments is None:
        _stop_on_ctrl_c(options)
    try:
        words, jupyter = _split_jupyter(list(sys.argv[1:] if arguments is None else arguments))
        _parser().parse_args(words, options)
        options.jupyter = jupyter
        if options.command != "bench":  # which measures the machine as it is set up
            wait_passively()
        typed.check(options)

        from illava_lab import commands

        own = getattr(options, "run", None)  # of a command that is a file of its own
        return _run(own or getattr(commands, options.command), options)
    except LabError as error:
        print(f"{PROGRAM}: error: {spelled(str(error))}", file=sys.stderr)
        return 2


def _run(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    try:
        return command(options)
    except SystemExit as error:
        if options.command == "lab":  # that is how JupyterLab ends
            raise
        # A strategy or a plug-in would end the program, with any status.
        raise LabError(f"{options.command} was ended by {reason(error)}") from error


def _stop_on_ctrl_c(options: argparse.Namespace) -> None:
    """End at once, with one line and status 130.

    Not by an exception: in the middle of loading torch that ends in a crash, or in a module that is half there. What is
    written row by row outlives any end.
    """

    def stop(*_: Any) -> None:
        out = getattr(options, "out", None)
        kept = out is not None and (out / "run.jsonl").exists()
        note = f"; finished rows are kept, the same command goes on from {str(out)!r}" if kept else ""
        os.write(2, f"\n{PROGRAM}: interrupted{note}\n".encode())
        os._exit(130)

    # Any other handler is there because somebody wants it otherwise.
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, starting.stop):
        signal.signal(signal.SIGINT, stop)


def _split_jupyter(words: list[str]) -> tuple[list[str], list[str]]:
    """`lab` hands everything from its first option on to JupyterLab."""
    if words[:1] != ["lab"]:
        return words, []
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if words[first : first + 1] in (["-h"], ["--help"]):
        return words, []
    return words[:first], words[first:]


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description="Understand, measure and invent visual-token merging in LLaVA models.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    lab = commands.add_parser(
        "lab",
        help="open JupyterLab at the first notebook",
        usage=f"{PROGRAM} lab [FOLDER] [options of JupyterLab]",
        description="Open JupyterLab at the first notebook, on this machine only. You work on a copy of the notebooks, "
        "which never loses what you changed. Options such as --no-browser or --port=9000 are JupyterLab's.",
    )
    lab.add_argument(
        "folder", nargs="?", type=typed.folder, metavar="FOLDER",
        help="where the copy goes (default: illava-lab-notebooks here, and in a clone my-notebooks at its top)",
    )  # fmt: skip

    ask = commands.add_parser(
        "ask", help="answer a question about an image or a video", description="Answer one question."
    )
    ask.add_argument("image", metavar="IMAGE", help="file of the image or video")
    ask.add_argument("question", metavar="QUESTION")
    shared.add_one_method(ask)
    shared.add_frames(ask)
    shared.add_graphs(ask)
    ask.add_argument("--verbose", action="store_true", help="also print every reduction step")
    _add_model(ask)

    compare = commands.add_parser(
        "compare",
        help="strategies side by side: accuracy, cost and time",
        description="Run every strategy at every budget on the same questions and print one table. Nothing is written "
        "without --out. With it, the folder gets table.csv, tradeoff.html, tradeoff.png and run.jsonl, and the same "
        "command goes on where it was stopped.",
    )
    shared.add_methods(compare, COMPARED, keep="0.7,0.5,0.3")
    compare.add_argument(
        "--task", default="test", help=f"{', '.join((*ONE_PICTURE, *OTHERS))}, the last "
        "four also with -validation behind the name, or a Parquet file (default: test)",
    )  # fmt: skip
    compare.add_argument("--limit", type=typed.count, metavar="N", help="at most N questions (default: all)")
    shared.add_seed(compare, "of random strategies and of the intervals")
    compare.add_argument(
        "--batch-size", type=typed.count, default=8, metavar="N", help="questions at once (default: 8)"
    )
    compare.add_argument("--no-timing", action="store_true", help="leave out the measurement of time")
    shared.add_graphs(compare)
    shared.add_out(compare)
    _add_model(compare)

    bench = commands.add_parser(
        "bench",
        help="strategies side by side: speed and memory, against the fastest that is possible",
        description="Time every strategy at every budget, batch size and prompt length, side by side with the bare "
        "model, with the limit (dropping as many tokens at the same layers, without scoring or merging) and with a "
        "loop by hand (the same without any hook). Nothing is written without --out. With it, the folder gets "
        "table.csv, bench.json and run.jsonl, and the same command "
        "goes on where it was stopped.",
    )
    shared.add_methods(bench, TIMED, keep="0.5")
    counts = typed.several(typed.count)
    bench.add_argument("--batch-sizes", type=counts, default=[1], metavar="N,...", help="prompts at once (default: 1)")
    bench.add_argument("--text-tokens", type=counts, metavar="N,...", help="lengths of the text in a prompt")
    bench.add_argument(
        "--image", metavar="FILE", help="image or video that each prompt shows (default: a test picture)"
    )
    shared.add_frames(bench)
    bench.add_argument("--new-tokens", type=typed.count, default=16, metavar="N", help="decoding steps (default: 16)")
    bench.add_argument(
        "--answers", type=counts, default=[1, 16, 128], metavar="N,...",
        help="lengths of answers timed from end to end (default: 1,16,128)",
    )  # fmt: skip
    bench.add_argument(
        "--largest-batch", type=typed.count, metavar="N", help="look for the largest batch that fits on CUDA, up to N"
    )
    shared.add_graphs(bench)
    bench.add_argument(
        "--rounds", type=typed.count, default=5, metavar="N", help="how often each row is timed (default: 5)"
    )
    shared.add_seed(bench, "of random strategies")
    shared.add_out(bench)
    _add_model(bench)

    check = commands.add_parser(
        "check",
        help="does a strategy keep its promises",
        description="Try strategies on small tensors, without a model, and report every promise that they break. "
        "Exit status 1 if there is one.",
    )
    check.add_argument(
        "strategies", nargs="*", metavar="NAME_OR_FILE", help="a name, or a .py file that registers some (default: all)"
    )

    commands.add_parser("strategies", help="which methods there are", description="List what is installed.")
    commands.add_parser(
        "presets",
        help="which settings of papers there are",
        description="List the settings of papers: strategy, layers with the tokens kept there (a number of them, or a "
        "fraction), and source.",
    )
    doctor.add_to(commands)
    submit.add_to(commands)
    return parser


# ---------------------------------------------------------------------------------------------- details
def _add_model(parser: Parser) -> None:
    parser.add_argument(
        "--model", metavar="MODEL",
        help=f"checkpoint folder, hub id, {', '.join(EMBEDDED_MODELS)}, or random:NAME for a published size with "
        "random weights (default: the embedded model)",
    )  # fmt: skip
    shared.add_place(parser)


if __name__ == "__main__":
    sys.exit(main())
