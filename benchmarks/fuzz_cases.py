"""What `fuzz.py` tries: kinds of odd input, each case of which is fixed by its seed.

A case ends well, or is refused by a `LabError` in one line; whatever comes of it, the model is bit for bit what it was.
"""

from __future__ import annotations

import dataclasses
import io
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from fuzz_arguments import arguments
from fuzz_bench import ASKED, SCHEDULE, STRATEGIES, Bench, Fault, check, tokens, try_it
from helpers.labs import noise
from helpers.odd_folders import MARKER, odd_folder
from helpers.odd_pictures import odd_film, odd_picture
from helpers.odd_runlogs import odd_runlog, outside

import illava_lab as il


# ---------------------------------------------------------------------------------------------- files
def pictures(bench: Bench, seed: int) -> str:
    path = odd_picture(seed, bench.place(seed).with_suffix(random.Random(seed).choice([".png", ".jpg", ".gif", ""])))
    return try_it(lambda: bench.lab.inputs([il.read_image(path)], ["token5"]))


def films(bench: Bench, seed: int) -> str:
    draw = random.Random(seed)
    path = odd_film(seed, bench.place(seed).with_suffix(draw.choice([".mp4", ".mkv", ".gif", ".avi", ".webm", ".mpg"])))
    return try_it(lambda: il.read_video(path, frames=draw.choice([1, 2, 8])))


def folders(bench: Bench, seed: int) -> str:
    """A checkpoint is loaded, and answers if it can; whatever asks whether code may run hears yes."""
    target = odd_folder(seed, bench.good, bench.place(seed))
    sys.stdin = io.StringIO("y\n" * 1000)
    how = random.Random(seed).choice([{}, {}, {"dtype": "auto"}, {"dtype": "bfloat16"}])

    def load() -> None:
        lab = il.load(target, **how)
        lab.ask(noise(), ASKED[0], "fastv", max_new_tokens=2)

    try:
        return try_it(load)
    finally:
        for place in (target, Path.cwd(), bench.folder):
            check(not (place / MARKER).exists(), "CODE OF THE CHECKPOINT RAN")


def runlogs(bench: Bench, seed: int) -> str:
    target = bench.place(seed)
    what = odd_runlog(seed, bench.run, target)
    before = outside(target).read_bytes()

    def resume() -> None:
        table = bench.compare(target)
        same = pd.read_csv(target / "table.csv").equals(bench.table)
        check(same and (table["accuracy"] == bench.table["accuracy"]).all(), f"{what}: another table")

    ended = try_it(resume)
    check(outside(target).read_bytes() == before, f"{what}: a file outside the folder was changed")
    return ended


# ---------------------------------------------------------------------------------------------- words
ODD_WORDS = (
    "<image>", "<video>", "</s>", "<s>", "<unk>", "<pad>", "<|im_end|>", "<|im_start|>assistant", "< image>", "<imag",
    "<<image>image>", "\ud800", "\udfff", "\ud83d\ude00", "\N{GRINNING FACE}", "\x00", "\x1b[2J", "\r", "\n\n", "\t",
    "\N{RIGHT-TO-LEFT OVERRIDE}", "\N{ZERO WIDTH JOINER}", "e" + "\N{COMBINING ACUTE ACCENT}" * 50, "\ufeff", "\uffff",
    "{{ 1/0 }}", "{% for x in range(10**9) %}{% endfor %}", "{{ ''.__class__ }}", "%s%n", "token5",
    "\N{NO-BREAK SPACE}",
    "\N{OBJECT REPLACEMENT CHARACTER}", "USER:", "ASSISTANT:", "Why", "?", " ", "", "word " * 300, "x" * 100_000,
)  # fmt: skip


def questions(bench: Bench, seed: int) -> str:
    draw = random.Random(seed)
    question = draw.choice(["", " "]).join(draw.choice(ODD_WORDS) for _ in range(draw.randint(1, 6)))
    strategy = draw.choice(STRATEGIES)

    def answered() -> None:
        if draw.random() < 0.5:
            answer = bench.lab.ask(noise(), question, strategy, max_new_tokens=2)
            check(isinstance(answer.text, str) and answer.trace.images_per_row == [1], "shows no single image")
            return
        with il.chat(bench.lab, noise(), strategy) as talk:
            talk.say(ASKED[0], max_new_tokens=3)
            before = tokens(talk)
            try:
                talk.say(question, max_new_tokens=2)
            except il.LabError:
                check(tokens(talk) == before, "a question that was refused counts")
                raise
            check(tokens(talk)[: len(before)] == before, "the conversation does not go on from where it was")

    return try_it(answered)


# ---------------------------------------------------------------------------------------------- interrupts
def _attach(bench: Bench) -> None:
    with il.attach(bench.model, "illava", SCHEDULE):
        pass


def _attach_and_run(bench: Bench) -> None:
    with il.attach(bench.model, "illava", SCHEDULE):
        bench.lab.answer([noise()], [ASKED[0]], max_new_tokens=1)


def _chat(bench: Bench) -> None:
    check(bench.conversation(1) == bench.said[:1], "the conversation is another one")


def _ask_flops(bench: Bench) -> None:
    bench.lab.ask(noise(), ASKED[0], "fastv", flops=0.8, max_new_tokens=1)


INTERRUPTED: dict[str, Callable[[Bench], object]] = {
    "attach": _attach,
    "attach and run": _attach_and_run,
    "ask": lambda bench: bench.answer("illava"),
    "ask flops": _ask_flops,
    "chat": _chat,
    "compare": lambda bench: bench.compare(None),
}
OFTEN = ("attach", "attach and run", "ask", "ask", "ask flops", "chat", "say", "say")  # comparisons take longer


def interrupts(bench: Bench, seed: int) -> str:
    """Ctrl-C at a random moment; afterwards all is as before, and a conversation as if nothing had been asked."""
    draw = random.Random(seed)
    name = "compare" if draw.random() < 0.03 else draw.choice(OFTEN)
    if name not in bench.seconds:
        bench.seconds[name] = _seconds(lambda: INTERRUPTED["ask" if name == "say" else name](bench))
    ended = _say(bench, draw) if name == "say" else _strike(bench, draw, name, lambda: INTERRUPTED[name](bench))
    return f"{name} {ended}"


def _strike(bench: Bench, draw: random.Random, name: str, run: Callable[[], object]) -> str:
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    after = draw.uniform(2e-6, 1.1 * bench.seconds[name])
    done: list[object] = []
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, after)
            done.append(run())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as interrupt:
        bench.last = interrupt  # its traceback lives on, as in a notebook
        return "ended before" if done else "interrupted"
    return "ended before"


def _say(bench: Bench, draw: random.Random) -> str:
    with il.chat(bench.lab, noise(), "fastv") as talk:
        for question in ASKED[: draw.randrange(2)]:
            talk.say(question, max_new_tokens=2)
        before, turn = tokens(talk), 0 if talk.tokens is None else 1
        ended = _strike(bench, draw, "say", lambda: talk.say(ASKED[turn], max_new_tokens=2))
        if ended == "interrupted":
            check(tokens(talk) == before, "a turn that was interrupted counts")
            talk.say(ASKED[turn], max_new_tokens=2)
        check(tokens(talk) == bench.said[turn], "the conversation goes on otherwise")
    return ended


def _seconds(run: Callable[[], object]) -> float:
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


KINDS: dict[str, Callable[[Bench, int], str]] = {
    "pictures": pictures,
    "films": films,
    "folders": folders,
    "runlogs": runlogs,
    "questions": questions,
    "arguments": arguments,
    "interrupts": interrupts,
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a case: how it ended, or what is wrong."""

    ended: str
    fault: str = ""


def try_case(bench: Bench, kind: str, seed: int) -> Verdict:
    """One case, and whether everything is as before."""
    try:
        ended = KINDS[kind](bench, seed)
        bench.as_before()
    except Fault as fault:
        return Verdict("fault", str(fault))
    finally:
        for path in bench.folder.glob(f"case{os.getpid()}-*"):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    return Verdict(ended)
