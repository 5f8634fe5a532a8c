"""illava-lab eval: strategies side by side on the benchmarks of lmms-eval."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from illava_lab import arguments as typed
from illava_lab.cli import shared
from illava_lab.measuring.task_names import ONE_PICTURE, OTHERS
from illava_lab.paths import quoted

COMPARED = ["none", "illava"]


def add_to(commands: Any) -> None:
    """Add the command to the parser's commands."""
    parser = commands.add_parser(
        "eval",
        help="strategies side by side on the benchmarks of lmms-eval",
        description="Let lmms-eval ask every strategy at every budget the questions of some benchmarks, and print one "
        "table. Needs lmms-eval. Under accelerate launch the processes share the work. Nothing is written without "
        "--out. With it, the folder gets table.csv, run.jsonl and answers, and the same command goes on behind the "
        "last answer where it was stopped.",
    )
    parser.add_argument(
        "--tasks", "--task", type=typed.several(typed.name), required=True, metavar="A,B,...",
        help="names of lmms-eval's tasks (python -m lmms_eval --tasks list), of the lab's "
        f"({', '.join((*ONE_PICTURE, *OTHERS))}), or Parquet files",
    )  # fmt: skip
    shared.add_methods(parser, COMPARED, keep="0.5")
    parser.add_argument(
        "--limit", type=typed.count, metavar="N",
        help="at most N questions of each task: of the lab's those that compare takes, of others the first",
    )  # fmt: skip
    shared.add_seed(parser, "of random strategies and of the intervals")
    parser.add_argument("--batch-size", type=typed.count, default=1, metavar="N", help="prompts at once (default: 1)")
    shared.add_frames(parser)
    shared.add_graphs(parser)
    shared.add_out(parser)
    shared.add_model(parser)
    parser.set_defaults(run=run)


def run(options: Namespace) -> int:
    """Print the table, and write it if there is a folder for it; 1 if a row failed."""
    from illava_lab.lmms.installed import check_installed

    check_installed()  # before torch is loaded

    from illava_lab.commands import load_lab, methods
    from illava_lab.lmms import harness
    from illava_lab.lmms.evaluate import evaluate
    from illava_lab.lmms.installed import check_works
    from illava_lab.lmms.summary import summary
    from illava_lab.measuring.distributed import is_first

    first = is_first()  # of several processes
    check_works()
    harness.quiet()
    harness.find_tasks(options.tasks, options.limit)
    lab = load_lab(options)
    table = evaluate(
        lab,
        options.tasks,
        **methods(options),
        limit=options.limit,
        seed=options.seed,
        batch_size=options.batch_size,
        frames=options.frames,
        graphs=options.graphs,
        out=options.out,
    )
    if not first:
        return 0
    print(f"model {lab.source!r}", summary(table), sep="\n\n")
    if options.out:
        print("Written:", quoted(options.out / "table.csv"))
    return 0 if (table["status"] == "ok").all() else 1
