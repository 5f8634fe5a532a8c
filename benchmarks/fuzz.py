"""Odd pictures, films, checkpoints, run logs, questions, arguments and interrupts, for as long as one likes.

    python benchmarks/fuzz.py [--minutes 30] [--seed 0] [--kind folders ...] [--cases N]

Cases run in two processes beside this one, which sees a crash, and a case that takes more than ten seconds. Every
fault is printed with its seed; `--kind KIND --seed SEED --cases 1` tries that one again. The exit status is 1 if there
is one.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from fuzz_bench import SECONDS, Bench
from fuzz_cases import KINDS, Verdict, try_case

PROCESSES = 2
TELL = 5  # minutes, after which it says how far it is
FORK = multiprocessing.get_context("fork")  # a child has the labs at once


def work(bench: Bench, end: Connection) -> None:
    """What a child does: a case, a verdict, and so on."""
    folder = bench.folder / f"process{os.getpid()}"
    folder.mkdir()
    os.chdir(folder)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(quiet, stream)
    faulthandler.register(signal.SIGUSR1, file=stack(bench.folder, os.getpid()).open("w"))
    while True:
        kind, seed = end.recv()
        try:
            verdict = try_case(bench, kind, seed)
        except BaseException as error:
            verdict = Verdict("fault", f"{type(error).__name__}: {''.join(traceback.format_exception(error))[-900:]!r}")
        end.send(verdict)


def stack(folder: Path, process: int) -> Path:
    """Where a process writes down what it is doing, when it is asked."""
    return folder / f"stack{process}"


class Child:
    """A process, and the case that it is at."""

    def __init__(self, bench: Bench) -> None:
        self.end, theirs = FORK.Pipe()
        self.process = FORK.Process(target=work, args=(bench, theirs), daemon=True)
        self.process.start()
        self.folder = bench.folder
        theirs.close()
        self.case: tuple[str, int] | None = None
        self.since = 0.0

    def give(self, case: tuple[str, int]) -> None:
        self.case, self.since = case, time.monotonic()
        self.end.send(case)

    def verdict(self) -> Verdict:
        """What came of the case; to be asked when the pipe has something."""
        try:
            verdict: Verdict = self.end.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            return Verdict("fault", f"the process crashed with {self.process.exitcode}")
        return verdict

    @property
    def late(self) -> bool:
        """Whether it takes too long, also for a machine that has other things to do."""
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        return time.monotonic() - self.since > SECONDS * busy

    def doing(self) -> str:
        """The innermost frames of a process that takes too long."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGUSR1)
        time.sleep(1)
        lines = stack(self.folder, self.process.pid).read_text().splitlines()
        return " < ".join(line.split("File ")[-1].replace('"', "") for line in lines[1:12])

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def cases(kinds: list[str], seed: int, count: int | None) -> Iterator[tuple[str, int]]:
    """Kinds in turn, seeds one after the other."""
    number = 0
    while count is None or number < count:
        for kind in kinds:
            yield kind, seed + number
        number += 1


def fuzz(kinds: list[str], seed: int, minutes: float, count: int | None) -> int:
    """Try cases until the time is over or all are tried, and print what came of them.

    Returns:
        The number of faults.
    """
    counted: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    waiting, until, started = cases(kinds, seed, count), time.monotonic() + 60 * minutes, time.monotonic()
    tell = started + 60 * TELL
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        children: list[Child] = []

        def settle(child: Child, verdict: Verdict) -> None:
            assert child.case is not None
            kind, number = child.case
            counted[kind][verdict.ended] += 1
            if verdict.fault:
                print(f"FAULT --kind {kind} --seed {number} --cases 1: {verdict.fault!a}", flush=True)
            child.case = None

        try:
            more = True
            while True:
                children = [child for child in children if child.process.is_alive() or child.case]
                while more and len(children) < PROCESSES:
                    children.append(Child(bench))
                for child in children:
                    if child.case is None:
                        case = next(waiting, None) if time.monotonic() < until else None
                        more = case is not None
                        if case is not None:
                            child.give(case)
                if time.monotonic() > tell:
                    tell += 60 * TELL
                    done = sum(ends.total() for ends in counted.values())
                    print(f"... {(time.monotonic() - started) / 60:.0f} minutes, {done:,} cases", flush=True)
                at_work = [child for child in children if child.case]
                if not at_work:
                    break
                ready: list[Any] = wait([child.end for child in at_work], timeout=1)
                for child in at_work:
                    if child.end in ready:
                        settle(child, child.verdict())
                    elif child.late:
                        told = f"takes more than {time.monotonic() - child.since:.0f} s, at {child.doing()}"
                        child.kill()
                        settle(child, Verdict("fault", told))
        except (KeyboardInterrupt, SystemExit):
            print("stopped", flush=True)
        finally:
            for child in children:
                child.kill()
    for kind, ends in counted.items():
        print(f"{kind}: {ends.total():,} cases; " + ", ".join(f"{end} {n:,}" for end, n in sorted(ends.items())))
    faults = sum(ends["fault"] for ends in counted.values())
    total = sum(ends.total() for ends in counted.values())
    print(f"{total:,} cases from seed {seed} in {(time.monotonic() - started) / 60:.1f} minutes, {faults} faults")
    return faults


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="only these (default: all)")
    parser.add_argument("--cases", type=int, help="of each kind (default: as many as there is time for)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return min(1, fuzz(options.kind or list(KINDS), options.seed, options.minutes, options.cases))


if __name__ == "__main__":
    sys.exit(main())
