"""The command line: illava-lab lab | ask | compare | bench | check | strategies. Same words as the Python functions.

Exit status: 0 on success, 1 where `check` finds a broken promise, 2 on bad usage with one line that names the mistake,
130 when interrupted with Ctrl-C.
"""

# Heavy modules are imported inside the commands that need them, so that --help and mistakes answer at once.
from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from illava_lab.session.answer import Answer

PROGRAM = "illava-lab"
COMMANDS = ("lab", "ask", "compare", "bench", "check", "strategies")


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage block before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: error: {message} ({self.prog} --help says more)\n")

    def _get_formatter(self) -> argparse.HelpFormatter:
        return argparse.HelpFormatter(self.prog, max_help_position=30)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words, jupyter = _split_jupyter(list(sys.argv[1:] if arguments is None else arguments))
    options = _parser().parse_args(words)
    options.jupyter = jupyter

    from illava_lab.errors import LabError

    try:
        return options.run(options)
    except LabError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = getattr(options, "out", None)
        note = f"; finished rows are kept, the same command goes on from {kept}" if kept else ""
        print(f"\n{PROGRAM}: interrupted{note}", file=sys.stderr)
        return 130


def _split_jupyter(words: list[str]) -> tuple[list[str], list[str]]:
    """`lab` hands everything from its first option on to JupyterLab."""
    if words[:1] != ["lab"]:
        return words, []
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if words[first : first + 1] in (["-h"], ["--help"]):
        return words, []
    return words[:first], words[first:]


# ---------------------------------------------------------------------------------------------- what can be typed
def _parser() -> _Parser:
    parser = _Parser(prog=PROGRAM, description="Understand, measure and invent visual-token merging in LLaVA models.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    lab = commands.add_parser(
        "lab",
        help="open JupyterLab at the first notebook",
        usage=f"{PROGRAM} lab [FOLDER] [options of JupyterLab]",
        description="Open JupyterLab at the first notebook, on this machine only. "
        "Options such as --no-browser or --port=9000 are JupyterLab's.",
    )
    lab.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="where a copy of the notebooks goes")
    lab.set_defaults(run=_lab)

    ask = commands.add_parser(
        "ask", help="answer a question about an image or a video", description="Answer one question."
    )
    ask.add_argument("image", metavar="IMAGE", help="file of the image or video")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--strategy", default="none", metavar="NAME", help="default: none, the bare model")
    ask.add_argument(
        "--keep", type=_fraction, default=1.0, help="fraction of visual tokens that reach the last layer (default: 1)"
    )
    ask.add_argument("--frames", type=int, default=8, metavar="N", help="frames taken from a video (default: 8)")
    ask.add_argument("--verbose", action="store_true", help="also print every reduction step")
    _add_model(ask)
    ask.set_defaults(run=_ask)

    compare = commands.add_parser(
        "compare",
        help="strategies side by side: accuracy, cost and time",
        description="Run every strategy at every budget on the same questions and print one table. Nothing is written "
        "without --out. With it, the folder gets table.csv, tradeoff.html, tradeoff.png and run.jsonl, and the same "
        "command goes on where it was stopped.",
    )
    compare.add_argument(
        "--strategies", type=_names, default=["none", "random", "fastv", "tome", "illava"], metavar="A,B,...",
        help="names, or all (default: none,random,fastv,tome,illava)",
    )  # fmt: skip
    compare.add_argument(
        "--keep", type=_fractions, metavar="X,Y,...",
        help="budgets: fractions of the visual tokens that reach the last layer (default: 0.7,0.5,0.3)",
    )  # fmt: skip
    compare.add_argument(
        "--flops", type=_fractions, metavar="X,Y,...", help="budgets: fractions of the bare model's prefill FLOPs"
    )
    compare.add_argument("--task", default="test", help="test, validation or a Parquet file (default: test)")
    compare.add_argument("--limit", type=int, metavar="N", help="at most N questions (default: all)")
    compare.add_argument("--seed", type=int, default=0, help="of random strategies and of the intervals (default: 0)")
    compare.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions at once (default: 8)")
    compare.add_argument("--no-timing", action="store_true", help="leave out the measurement of time")
    compare.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default: only printed)")
    _add_model(compare)
    compare.set_defaults(run=_compare)

    bench = commands.add_parser(
        "bench",
        help="strategies side by side: speed and memory, against the fastest that is possible",
        description="Time every strategy at every budget, batch size and prompt length, side by side with the bare "
        "model and with the limit: dropping as many tokens at the same layers, without scoring or merging. Nothing is "
        "written without --out. With it, the folder gets table.csv, bench.json and run.jsonl, and the same command goes "
        "on where it was stopped.",
    )
    bench.add_argument(
        "--strategies", type=_names, metavar="A,B,...",
        help="names, or all (default: fastv,tome,visionzip,illava; none with --presets alone)",
    )  # fmt: skip
    bench.add_argument("--keep", type=_fractions, metavar="X,Y,...", help="budgets, as in compare (default: 0.5)")
    bench.add_argument("--flops", type=_fractions, metavar="X,Y,...", help="budgets, as in compare")
    bench.add_argument(
        "--presets", type=_names, default=[], metavar="A,B,...",
        help="settings of papers, each with its own strategy, for example illava-image,fastv",
    )  # fmt: skip
    bench.add_argument("--batch-sizes", type=_counts, default=[1], metavar="N,...", help="prompts at once (default: 1)")
    bench.add_argument("--text-tokens", type=_counts, metavar="N,...", help="lengths of the text in a prompt")
    bench.add_argument(
        "--image", metavar="FILE", help="image or video that each prompt shows (default: a test picture)"
    )
    bench.add_argument("--frames", type=int, default=8, metavar="N", help="frames taken from a video (default: 8)")
    bench.add_argument("--new-tokens", type=int, default=16, metavar="N", help="decoding steps (default: 16)")
    bench.add_argument("--rounds", type=int, default=5, metavar="N", help="how often each row is timed (default: 5)")
    bench.add_argument("--seed", type=int, default=0, help="of random strategies (default: 0)")
    bench.add_argument("--out", type=Path, metavar="FOLDER", help="where results go (default: only printed)")
    _add_model(bench)
    bench.set_defaults(run=_bench)

    check = commands.add_parser(
        "check",
        help="does a strategy keep its promises",
        description="Try strategies on small tensors, without a model, and report every promise that they break. "
        "Exit status 1 if there is one.",
    )
    check.add_argument(
        "strategies", nargs="*", metavar="NAME_OR_FILE", help="a name, or a .py file that registers some (default: all)"
    )
    check.set_defaults(run=_check)

    strategies = commands.add_parser("strategies", help="what is installed", description="List what is installed.")
    strategies.set_defaults(run=_strategies)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="MODEL",
        help="checkpoint folder, hub id, or random:NAME for a published size with random weights (default: the embedded model)",
    )  # fmt: skip
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--device-map", choices=["auto"], help="auto: spread the model over all GPUs")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16, float16 or auto (default: float32)")
    parser.add_argument(
        "--quantize", choices=["4bit", "8bit"], help="smaller weights, on NVIDIA GPUs (needs bitsandbytes)"
    )


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be in (0, 1], got {text}")
    return value


def _fractions(text: str) -> list[float]:
    return [_fraction(part) for part in text.split(",")]


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers") from None


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


# ---------------------------------------------------------------------------------------------- what it does
def _lab(options: argparse.Namespace) -> int:
    from illava_lab.course.jupyter import open_lab

    return open_lab(options.folder, options.jupyter)


def _ask(options: argparse.Namespace) -> int:
    from illava_lab.errors import LabError
    from illava_lab.method.registry import get_strategy

    # Mistakes in small things show before a large model is loaded.
    if get_strategy(options.strategy).kind == "none" and options.keep < 1:
        raise LabError(f"--keep {options.keep:g} needs a --strategy that reduces; {options.strategy!r} keeps all")
    shown = _shown(options)
    lab = _load(options)
    answer = lab.ask(shown, options.question, strategy=options.strategy, keep=options.keep)
    print(answer.text)
    print(_visual_tokens(answer), _times(answer), sep="; ")
    if options.verbose:
        for step in answer.trace.steps:
            print(f"  {step.stage} layer {step.layer}: {step.before} -> {step.after} visual tokens")
    if answer.unknown_words:
        words = ", ".join(answer.unknown_words)
        print(f"{PROGRAM}: note: the model's vocabulary lacks these words of the question: {words}", file=sys.stderr)
    return 0


def _visual_tokens(answer: Answer) -> str:
    trace, images = answer.trace, range(sum(answer.trace.images_per_row))
    encoder = sum(step.stage != "llm" for step in trace.steps)
    before = sum(len(trace.layout(image).boxes) for image in images)
    between, after = (sum(len(trace.sources(image, steps).anchor) for image in images) for steps in (encoder, None))
    return f"visual tokens: encoder {before} -> {between}, LLM {between} -> {after}"


def _times(answer: Answer) -> str:
    timing = answer.timing
    return f"prefill {timing.prefill * 1e3:.0f} ms, {timing.tokens} new tokens, the rest {timing.decode * 1e3:.0f} ms"


def _compare(options: argparse.Namespace) -> int:
    from illava_lab.measuring.compare import compare
    from illava_lab.measuring.distributed import is_first
    from illava_lab.measuring.summary import summary, summary_by_category
    from illava_lab.measuring.tasks import load_task
    from illava_lab.method.registry import get_strategy, strategies
    from illava_lab.views import plots

    names = list(strategies()) if options.strategies == ["all"] else options.strategies
    for name in names:
        get_strategy(name)
    first = is_first()  # of several processes
    task = load_task(options.task)
    part = task.limited(options.limit)
    lab = _load(options)
    table = compare(
        lab,
        names,
        options.keep,
        flops=options.flops,
        task=task,
        limit=options.limit,
        seed=options.seed,
        batch_size=options.batch_size,
        timing=not options.no_timing,
        out=options.out,
        progress=first and sys.stderr.isatty(),
    )
    if not first:
        return 0
    print(f"{lab.source} model, task {task.name}: {len(part)} questions about {len(part.images)} images")
    print(summary(table), f"Accuracy % by category of question\n{summary_by_category(table)}", sep="\n\n")
    if options.out:
        figure = plots.tradeoff(table)
        written = [options.out / "table.csv", plots.save_html(figure, options.out / "tradeoff.html")]
        written.append(plots.tradeoff_png(table, options.out / "tradeoff.png"))
        print("Written:", *written)
    return 0


def _bench(options: argparse.Namespace) -> int:
    from illava_lab.measuring.bench import bench
    from illava_lab.measuring.bench_summary import summary
    from illava_lab.method.registry import get_strategy, strategies

    names = options.strategies
    if names is None:
        only_presets = options.presets and not options.keep and not options.flops
        names = [] if only_presets else ["fastv", "tome", "visionzip", "illava"]
    names = list(strategies()) if names == ["all"] else names
    for name in names:
        get_strategy(name)
    shown = None if options.image is None else _shown(options)
    lab = _load(options)
    table = bench(
        lab,
        names,
        options.keep,
        flops=options.flops,
        presets=options.presets,
        batch_sizes=options.batch_sizes,
        text_tokens=options.text_tokens,
        shown=shown,
        new_tokens=options.new_tokens,
        rounds=options.rounds,
        seed=options.seed,
        out=options.out,
        progress=sys.stderr.isatty(),
    )
    print(repr(lab), summary(table), sep="\n\n")
    if options.out:
        print("Written:", options.out / "table.csv", options.out / "bench.json")
    return 0


def _check(options: argparse.Namespace) -> int:
    from illava_lab.method.registry import strategies
    from illava_lab.testing import check_strategies

    report = check_strategies(options.strategies or strategies(), raises=False)
    print(report)
    return 0 if report.passed else 1


def _strategies(options: argparse.Namespace) -> int:
    from illava_lab.method.declared import declared
    from illava_lab.method.registry import broken_plugins, strategies

    rows = [("name", "kind", "stages", "paper")]
    for name, cls in strategies().items():
        kind, stages, paper = (declared(cls, attribute) for attribute in ("kind", "stages", "paper"))
        rows.append((name, kind or "-", " and ".join(stages or ()) or "-", str(paper or "-")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    for plugin, reason in broken_plugins().items():
        print(f"{PROGRAM}: note: the plug-in {plugin} could not be loaded: {reason}", file=sys.stderr)
    return 0


def _shown(options: argparse.Namespace) -> Any:
    """The image or video of the command."""
    from illava_lab.models.images import read_image
    from illava_lab.models.video import SUFFIXES, read_video

    film = options.image.lower().endswith(SUFFIXES)
    return read_video(options.image, options.frames) if film else read_image(options.image)


def _load(options: argparse.Namespace) -> Any:
    from illava_lab.session.load import load

    _quiet()
    return load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        device_map=options.device_map,
        quantize=options.quantize,
        revision=options.revision,
    )


def _quiet() -> None:
    """Keep off the screen what libraries say to developers."""
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()


if __name__ == "__main__":
    sys.exit(main())
