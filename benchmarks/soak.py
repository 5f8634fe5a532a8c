"""Does anything wear out? Strategies, families, pictures and interrupts at random, for as long as one likes.

    python benchmarks/soak.py [MINUTES] [SEED]        20 minutes and seed 0 if not named

Every round attaches a strategy to a small model of some family and lets it answer; a signal interrupts every second one
at a random moment, wherever that is: in a layer, while hooks are set, while they are taken back. After every round the
model is what it was; its answer equals that of the first time; in the end memory is what it was after warming up.
Exit status 1 where anything of this does not hold.
"""

from __future__ import annotations

import gc
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import KINDS, Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY, structure

import illava_lab as il
from illava_lab.hooks.attach import is_attached

SCHEDULES = (
    il.Schedule({0: 0.7, 2: 16}, {1: 0.6, 3: 0.5}), il.Schedule({1: 0.6}), il.Schedule(llm={2: 0.5, 3: 0.4}),
)  # fmt: skip
STRATEGIES = ("illava", "illava-2026", "tome", "fastv", "stride", "random", "sparsevlm", "divprune", "pool")


class Interrupted(BaseException):
    """As Ctrl-C, and told apart from a real one."""


def _interrupt(*_: Any) -> None:
    raise Interrupted


def memory() -> int:
    """Bytes of the process's memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1]) if Path("/proc/self/statm").exists() else 0
    return pages * resource.getpagesize()


def plan(draw: random.Random) -> tuple[str, str, il.Schedule, int]:
    """A family, a strategy, a schedule that it can keep, and what is shown."""
    while True:
        kind, name, schedule = draw.choice(KINDS), draw.choice(STRATEGIES), draw.choice(SCHEDULES)
        stages = {stage for stage in ("encoder", "llm") if schedule.plan(stage)}
        if stages <= set(il.get_strategy(name).stages):
            return kind, name, schedule, draw.randrange(4)


def answer(kind: str, name: str, schedule: il.Schedule, seed: int) -> list[int]:
    """What the attached model answers."""
    model = shared_llava(kind)
    with il.attach(model, name, schedule):
        inputs = make_inputs([Prompt(1, 4 + seed, seed=seed)], kind)
        return model.generate(**inputs, max_new_tokens=3, **GREEDY)[0, -3:].tolist()


def main() -> int:
    minutes, seed = (float(sys.argv[1]) if len(sys.argv) > 1 else 20.0), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    draw, counted, known, wrong = random.Random(seed), Counter[str](), {}, []
    inputs = {kind: make_inputs([Prompt(seed=1)], kind) for kind in KINDS}
    bare, start = {}, 0
    with torch.no_grad():
        logits = {kind: shared_llava(kind)(**inputs[kind]).logits for kind in KINDS}
    for kind in KINDS:
        bare[kind] = structure(shared_llava(kind))
    signal.signal(signal.SIGALRM, _interrupt)
    began = time.monotonic()
    while time.monotonic() - began < 60 * minutes:
        chosen = kind, name, schedule, shown = plan(draw)
        counted["rounds"] += 1
        try:
            if counted["rounds"] % 2:
                signal.setitimer(signal.ITIMER_REAL, draw.uniform(0.0005, 0.12))
            got = answer(*chosen)
            signal.setitimer(signal.ITIMER_REAL, 0)
            counted["answers"] += 1
            if known.setdefault((kind, name, schedule, shown), got) != got:
                wrong.append(f"{chosen}: {got}, was {known[kind, name, schedule, shown]}")
        except Interrupted:
            counted["interrupts"] += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        gone = structure(shared_llava(kind)) ^ bare[kind]
        if gone or is_attached(shared_llava(kind)):
            wrong.append(f"{chosen}: left behind {sorted(gone)[:3]}")
            break
        if counted["rounds"] == 400:
            start = memory()
        if counted["rounds"] % 200 == 0:
            with torch.no_grad():
                if any(not torch.equal(shared_llava(kind)(**inputs[kind]).logits, logits[kind]) for kind in KINDS):
                    wrong.append(f"after {counted['rounds']} rounds a bare model answers otherwise")
    grown = memory() - start
    print(f"{dict(counted)} in {time.monotonic() - began:.0f} s, seed {seed}; memory grew by {grown / 1e6:.1f} MB")
    print("\n".join(wrong) or "all answers, models and hooks as at the start")
    return int(bool(wrong) or (start > 0 and grown > 50e6))


if __name__ == "__main__":
    raise SystemExit(main())
