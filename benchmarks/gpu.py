"""Time strategies on models of 7B to 34B with random weights, on a GPU.

    python benchmarks/gpu.py                                       everything, the most telling first; 34B needs 80 GB
    python benchmarks/gpu.py --rows 'llava-1.5-7b-*' --minutes 8   a part; the same command again goes on
    python benchmarks/gpu.py --rows llava-1.5-7b-b1 --graphs       with captured graphs
    python benchmarks/gpu.py --rows tiny --device cpu --dtype float32 --rounds 1        only to try the script

Before a model is timed, a short self-check says whether its answers hold, and goes on either way. Each table has the
bare model, "none" attached, and strategies, each timed in rounds with the bare model, its limit and the loop by hand
(`illava_lab.measuring.bench`). Finished rows are safe in results/.runs/gpu; tables are written to results/gpu, also
those that are not complete. Weights are random: speed and memory mean something, answers do not.
`python results/make_gpu.py` writes the page's tables from results/gpu.
"""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path
from time import perf_counter

import torch
from gpu_check import checks
from gpu_rows import KEEP, ROWS, Rows, chosen

import illava_lab as il
from illava_lab.measuring.bench import ANSWERS, bench
from illava_lab.measuring.bench_summary import summary
from illava_lab.measuring.rows import wanted

HERE = Path(__file__).parents[1]
RESULT = HERE / "results" / "gpu"
RUN = HERE / "results" / ".runs" / "gpu"


def main() -> int:
    options = _options()
    rows = chosen(options.rows)
    if not rows:
        print(f"no rows match {' '.join(options.rows)}; there are {', '.join(own.name for own in ROWS)}, tiny")
        return 2
    clock = _Clock(options.minutes)
    lab = None
    for own in rows:
        source = own.source or "embedded"
        if lab is None or lab.source != source:
            lab = None  # before the next one takes its memory
            _free()
            if not clock.left(source):
                return _stopped(clock)
            with clock.timed(source):
                lab = il.load(own.source, device=options.device, dtype=options.dtype)
            print(f"{clock}  {source} is there", flush=True)
        if not options.no_check:
            for check in checks(lab, own.prompt.shown(), _plan(own, lab), options.graphs):
                print(f"{clock}  {check}", flush=True)
        if not _measure(own, lab, options, clock):
            return _stopped(clock)
    return 0


def _stopped(clock: _Clock) -> int:
    print(f"{clock}  time is up; the same command again goes on")
    return 0


def _measure(own: Rows, lab: il.Lab, options: argparse.Namespace, clock: _Clock) -> bool:
    """One table, row by row; False if there is no time left for all of it."""
    name = f"{own.name}-graphs" if options.graphs else own.name
    steps: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
        *((own.presets[:count], ()) for count in range(1, len(own.presets) + 1)),
        *((own.presets, own.strategies[:count]) for count in range(1, len(own.strategies) + 1)),
    ]
    table = None
    for presets, strategies in steps:  # each goes on from the rows of those before
        if not clock.left(own.name):
            break
        with clock.timed(own.name):
            table = bench(
                lab, strategies or None, KEEP if strategies else None, preset=presets or None, image=own.prompt.shown(),
                batch_sizes=[own.batch], new_tokens=options.new_tokens, answers=options.answers, rounds=options.rounds,
                graphs=options.graphs, largest_batch=options.largest, out=options.run / name, progress=False,
            )  # fmt: skip
        last = (strategies or presets)[-1]
        print(f"{clock}  {name}: {last}", flush=True)
        options.out.mkdir(parents=True, exist_ok=True)
        for stored, wanted_name in (("table.csv", f"{name}.csv"), ("bench.json", f"{name}.json")):
            (options.out / wanted_name).write_text((options.run / name / stored).read_text())
    if table is not None:
        print(f"\n{own.source or 'embedded'}, {own.prompt.shows}\n\n{summary(table)}\n", flush=True)
    return table is not None and len(table) == 2 + len(own.presets) + len(own.strategies)


def _plan(own: Rows, lab: il.Lab) -> list:
    """The rows as `bench` will make them."""
    keep = KEEP if own.strategies else None
    return wanted(own.strategies or None, keep, None, own.presets or None, None, default=(), seed=0).rows(lab.model)


class _Clock:
    """How long all of it may take, and how long each part took before."""

    def __init__(self, minutes: float | None) -> None:
        self._start, self._end = perf_counter(), None if minutes is None else 60 * minutes
        self._took: dict[str, float] = {}
        self._name, self._began = "", 0.0

    @property
    def now(self) -> float:
        return perf_counter() - self._start

    def left(self, name: str) -> bool:
        """Whether there is time for one more of these, as far as those before tell."""
        expected = self._took.get(name, max(self._took.values(), default=0.0))
        return self._end is None or self.now + expected < self._end

    def timed(self, name: str) -> _Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = self.now

    def __exit__(self, *_: object) -> None:
        self._took[self._name] = self.now - self._began

    def __str__(self) -> str:
        return f"[{self.now:6.1f} s]"


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = ", ".join(rows.name for rows in ROWS)
    parser.add_argument(
        "--rows", nargs="+", default=[rows.name for rows in ROWS], metavar="NAME",
        help=f"tables by name or pattern, of {names}, tiny (default: all but tiny)",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, metavar="M", help="begin nothing that would end after so many minutes")
    parser.add_argument("--graphs", action="store_true", help="attach with captured graphs; tables of their own")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="how often each row is timed (default: 7)")
    parser.add_argument(
        "--new-tokens", type=int, default=8, metavar="N", help="decoding steps in each round (default: 8)"
    )
    parser.add_argument(
        "--answers", type=int, nargs="+", default=list(ANSWERS), metavar="N",
        help=f"lengths of answers timed from end to end (default: {' '.join(map(str, ANSWERS))})",
    )  # fmt: skip
    parser.add_argument(
        "--largest", type=int, metavar="N", help="look for the largest batch that fits, up to N prompts"
    )
    parser.add_argument("--no-check", action="store_true", help="leave the self-check out")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--dtype", default="bfloat16", help="default: bfloat16")
    parser.add_argument("--out", type=Path, default=RESULT, help=f"folder of the tables (default: {_short(RESULT)})")
    parser.add_argument("--run", type=Path, default=RUN, help=f"folder to go on from (default: {_short(RUN)})")
    return parser.parse_args()


def _short(path: Path) -> str:
    return str(path.relative_to(HERE))


if __name__ == "__main__":
    sys.exit(main())
