"""What several commands share: how a parser refuses, and the words that mean the same in each of them."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from illava_lab import arguments as typed
from illava_lab.errors import spelled
from illava_lab.session.starting import PROGRAM


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage block before it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30), **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: error: {spelled(message)} ({self.prog} --help says more)\n")


def add_one_method(parser: Parser) -> None:
    """What reduces, and by how much: the arguments of `Lab.ask`, in their order."""
    parser.add_argument(
        "--strategy", "--strategies", type=typed.name, metavar="NAME", help="default: none, the bare model"
    )
    parser.add_argument(
        "--keep", type=typed.fraction, metavar="X",
        help="fraction of the visual tokens that the last LLM layer sees (default with a strategy: 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--flops", type=typed.fraction, metavar="X", help="instead: fraction of the bare model's prefill FLOPs"
    )
    parser.add_argument(
        "--preset", "--presets", type=typed.name, metavar="NAME",
        help=f"instead: a paper's setting with its own strategy ({PROGRAM} presets lists them)",
    )  # fmt: skip
    parser.add_argument(
        "--schedule", type=typed.schedule, metavar="JSON",
        help="instead: layer to fraction or number of tokens kept, such as "
        """'{"encoder": {"3": 0.8}, "llm": {"2": 0.5}}'""",
    )  # fmt: skip


def add_methods(parser: Parser, strategies: list[str], keep: str) -> None:
    """The same where each may be several: the arguments of `compare` and `bench`."""
    names, fractions = typed.several(typed.name), typed.several(typed.fraction)
    parser.set_defaults(default_strategies=strategies)
    parser.add_argument(
        "--strategy", "--strategies", type=names, metavar="A,B,...",
        help=f"names, or all (default: {','.join(strategies)}; none of them with --presets alone)",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=fractions, metavar="X,Y,...",
        help=f"budgets: fractions of the visual tokens that the last LLM layer sees (default: {keep})",
    )  # fmt: skip
    parser.add_argument(
        "--flops", type=fractions, metavar="X,Y,...", help="budgets: fractions of the bare model's prefill FLOPs"
    )
    parser.add_argument(
        "--preset", "--presets", type=names, metavar="A,B,...",
        help=f"further rows: papers' settings, each with its own strategy ({PROGRAM} presets lists them)",
    )  # fmt: skip
    parser.add_argument(
        "--schedule", type=typed.schedules, metavar="JSON",
        help="budgets: layer to fraction or number of tokens kept, such as "
        """'{"encoder": {"3": 0.8}, "llm": {"2": 0.5}}', or a list of those in [ ]""",
    )  # fmt: skip


def add_graphs(parser: Parser) -> None:
    parser.add_argument("--graphs", action="store_true", help="with captured graphs, where there is a CUDA device")


def add_frames(parser: Parser) -> None:
    parser.add_argument(
        "--frames", type=typed.count, default=8, metavar="N", help="frames taken from a video (default: 8)"
    )


def add_seed(parser: Parser, of: str) -> None:
    parser.add_argument("--seed", type=typed.seed, default=0, metavar="N", help=f"{of} (default: 0)")


def add_out(parser: Parser) -> None:
    parser.add_argument("--out", type=typed.folder, metavar="FOLDER", help="where results go (default: only printed)")


def add_place(parser: Parser) -> None:
    """Which of a model's revisions, and where it runs in what form: the arguments of `il.load` behind the source."""
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument("--device-map", choices=["auto"], help="auto: spread the model over all GPUs")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16", "auto"], default="float32",
        help="of the weights; auto: as published (default: float32)",
    )  # fmt: skip
    parser.add_argument(
        "--quantize", choices=["4bit", "8bit"], help="smaller weights, on NVIDIA GPUs (needs bitsandbytes)"
    )
