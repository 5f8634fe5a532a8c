"""What `fuzz.py` tries: kinds of odd input, each case of which is fixed by its seed.

A case ends well, or is refused by a `LabError` in one line; whatever comes of it, the model is bit for bit what it was.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.attached import structure
from helpers.labs import noise, small_lab
from helpers.odd_folders import MARKER, odd_folder
from helpers.odd_pictures import odd_film, odd_picture
from helpers.odd_runlogs import odd_runlog, outside

import illava_lab as il
from illava_lab.hooks.attach import is_attached
from illava_lab.views import plots

SECONDS = 10.0
ASKED = ("token17 token20 on the table?", "token5 token6 token7?", "token19 token44 Why?")
SCHEDULE = il.Schedule({1: 0.7}, {2: 0.5})
STRATEGIES = ("illava", "fastv", "tome", "random", "none")


class Fault(Exception):
    """Something that must not happen; the text says what."""


def check(holds: object, what: str) -> None:
    """Raise Fault unless it holds."""
    if not holds:
        raise Fault(what)


class Bench:
    """What cases work on, made once: a small lab, a good checkpoint, the folder of a finished comparison.

    Args:
        folder: everything that is written goes here.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        transformers.utils.logging.disable_progress_bar()
        self.lab = small_lab("clip-llama")
        self.model = self.lab.model
        self.task = il.load_task("test").limited(1)
        self.good, self.run = folder / "good", folder / "run"
        self.model.save_pretrained(self.good)
        self.lab.processor.save_pretrained(self.good)
        self.compare(self.run)
        self.table = pd.read_csv(self.run / "table.csv")
        self.answers = {name: self.answer(name) for name in STRATEGIES}
        self.said = self.conversation()
        self.bare = structure(self.model)
        self.weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.tried = 0
        # How long what is to be interrupted takes.
        self.seconds = {name: _seconds(lambda run=run: run(self)) for name, run in INTERRUPTED.items()}
        self.seconds["say"] = self.seconds["ask"]
        self.last: KeyboardInterrupt | None = None

    def compare(self, out: Path | None) -> pd.DataFrame:
        return il.compare(self.lab, ["random", "fastv"], 0.5, task=self.task, timing=False, out=out, progress=False)

    def answer(self, strategy: str) -> str:
        return self.lab.ask(noise(), ASKED[0], strategy, max_new_tokens=2).text

    def conversation(self, turns: int = 3) -> list[list[int]]:
        """The tokens after each turn."""
        said = []
        with il.chat(self.lab, noise(), "fastv") as talk:
            for question in ASKED[:turns]:
                talk.say(question, max_new_tokens=2)
                said.append(tokens(talk))
        return said

    def as_before(self) -> None:
        """Raise Fault unless the model is what it was, and answers as it did."""
        check(not is_attached(self.model), "a strategy stays attached")
        changed = structure(self.model) ^ self.bare
        check(not changed, f"the model is changed: {sorted(changed)[:3]}")
        for name, tensor in self.model.state_dict().items():
            check(torch.equal(tensor, self.weights[name]), f"the weights {name} are changed")
        off = not torch.is_grad_enabled() or torch.is_inference_mode_enabled()
        torch.set_grad_enabled(True)
        check(not off, "gradients stay switched off")
        self.tried += 1
        strategy = STRATEGIES[self.tried % len(STRATEGIES)]
        check(self.answer(strategy) == self.answers[strategy], f"{strategy} answers otherwise than before")

    def place(self, seed: int) -> Path:
        """A new path for a case."""
        path = self.folder / f"case{os.getpid()}-{seed}"
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        return path


def tokens(talk: il.Chat) -> list[int]:
    return [] if talk.tokens is None else talk.tokens[0].tolist()


def try_it(call: Callable[[], object]) -> str:
    """ "read" or "refused".

    Raises:
        Fault: an error that is no LabError, or one whose text is no plain line.
    """
    try:
        call()
    except il.LabError as error:
        said = str(error)
        check(said and len(said) < 2000, f"is refused in {len(said)} characters")
        check(all(line.isprintable() for line in said.splitlines()), f"is refused with {said!r}")
        return "refused"
    except Fault:
        raise
    except BaseException as error:
        raise Fault(f"raises {type(error).__name__}: {str(error)[:200]!r} at {_where(error)}") from error
    return "read"


def _where(error: BaseException) -> str:
    """The last line of the lab that an error came through."""
    trace, found = error.__traceback__, "nowhere"
    while trace is not None:
        code = trace.tb_frame.f_code
        if "illava_lab" in code.co_filename or "strategies" in code.co_filename:
            found = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


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


# ---------------------------------------------------------------------------------------------- arguments
def odd_values() -> list[Any]:
    """Wrong types and values; none that asks for more work than there is time for."""
    return [
        None, True, False, 0, -1, 1, 2, 0.5, 1.0, 1.5, -0.5, 0.0, 1e-300, math.nan, math.inf, -math.inf, "", " ",
        "none", "illava", "0.5", "text", "\x1b[31m", "\ud800", "a" * 5000, b"", b"bytes", [], [1], [0.5], ["illava"],
        [None], (), {}, {"llm": {2: 0.5}}, {2: 0.5}, set(), object(), lambda: None, int, il.Scorer,
        il.Strategy,
        np.float32(0.5), np.float64(0.3), np.int64(2), np.array([1.0]), np.array([]), np.zeros((3, 3, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8), torch.tensor(0.5), torch.tensor([1, 2]), torch.zeros(0), 1j, Path("."),
        Path("/nowhere"), Path(""), "/dev/null", "../x", "illava,fastv", SCHEDULE, il.Schedule(),
        il.Schedule(llm={2: 1}), il.Schedule({99: 0.5}), il.get_strategy("illava"),
        il.get_strategy("illava")(), ValueError("x"), range(3),
        pd.DataFrame(), pd.NA, float("1e308"), 10**400, "illava-image", iter([0.5]), noise(), noise(1, 2),
    ]  # fmt: skip


def verbs(bench: Bench, place: Path) -> dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any]]]:
    """Public functions, with positional and further arguments that are right."""
    lab, picture, frame = bench.lab, noise(), bench.table
    budget = {"strategy": "illava", "keep": 0.5}
    quick = {"progress": False, "out": None}
    return {
        "ask": (lab.ask, [picture, ASKED[0]], {**budget, "max_new_tokens": 2, "flops": None, "preset": None,
                                               "schedule": None}),
        "inputs": (lab.inputs, [[picture], [ASKED[0]]], {}),
        "answer": (lab.answer, [[picture], [ASKED[0]]], {"max_new_tokens": 2}),
        "chat": (_one_turn, [lab, picture], {**budget, "question": ASKED[0], "max_new_tokens": 2, "stream": None}),
        "attach": (_attached, [bench.model, "illava", SCHEDULE], {"positions": "original"}),
        "compare": (il.compare, [lab, ["fastv"], 0.5], {"task": bench.task, "timing": False, "limit": 1, "seed": 0,
                                                        "batch_size": 4, "flops": None, "preset": None, **quick}),
        "bench": (il.bench, [lab, ["fastv"], 0.5], {"image": picture, "batch_sizes": (1,), "text_tokens": None,
                                                    "new_tokens": 1, "rounds": 1, "seed": 0, **quick}),
        "fidelity": (il.fidelity, [lab, [picture], [ASKED[0]]], {**budget, "max_new_tokens": 2, "seed": 0, **quick}),
        "converse": (il.converse, [lab, bench.task], budget),
        "difference": (il.difference, [frame, "fastv", "random"], {}),
        "summary": (il.summary, [frame], {}),
        "Schedule": (il.Schedule, [{1: 0.5}, {2: 0.5}], {}),
        "for_budget": (il.Schedule.for_budget, ["illava", bench.model], {"keep": 0.5, "flops": None}),
        "preset": (il.Schedule.preset, ["illava-image", bench.model], {}),
        "get_strategy": (il.get_strategy, ["illava"], {}),
        "settings": (il.get_strategy("illava"), [], {"ramp": "reference", "score": "lse"}),
        "random": (il.get_strategy("random"), [], {"seed": 0}),
        "check_strategy": (il.check_strategy, ["stride"], {"raises": False, "only": "metadata"}),
        "load": (il.load, [bench.good], {"device": "cpu", "dtype": "float32", "device_map": None, "quantize": None,
                                         "revision": None}),
        "load_task": (il.load_task, ["validation"], {}),
        "limited": (bench.task.limited, [1], {}),
        "read_image": (il.read_image, [picture], {}),
        "read_video": (il.read_video, [np.zeros((2, 8, 8, 3), np.uint8)], {"frames": 2, "fps": 1.0}),
        "Tokens": (_worked, [torch.randn(1, 9, 4), 4], {}),
        "correct": (il.correct, [["a"] * len(bench.task), bench.task], {}),
        "tradeoff": (plots.tradeoff, [frame], {}),
    }  # fmt: skip


def _one_turn(lab: Any, image: Any, question: Any, max_new_tokens: Any, stream: Any, **budget: Any) -> None:
    with il.chat(lab, image, **budget) as talk:
        talk.say(question, max_new_tokens=max_new_tokens, stream=stream)


def _attached(model: Any, strategy: Any, schedule: Any, **how: Any) -> None:
    with il.attach(model, strategy, schedule, **how):
        pass


def _worked(hidden: Any, keep: Any) -> None:
    scores = torch.rand(1, 9)
    il.get_strategy("fastv")().map(il.Tokens(stage="llm", hidden=hidden, text_attention=scores), keep=keep)


def arguments(bench: Bench, seed: int) -> str:
    draw = random.Random(seed)
    place = bench.place(seed)
    known = verbs(bench, place)
    name = draw.choice(sorted(known))
    verb, given, more = known[name]
    given, more, said = list(given), dict(more), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        key = draw.choice([*range(len(given)), *more])
        values = odd_values()
        number = draw.randrange(len(values))
        if key == "stream" and callable(values[number]):  # a function of the caller may raise what it likes
            continue
        if isinstance(key, int):
            given[key] = values[number]
        else:
            more[key] = values[number]
        said.append(f"{key}={number} ({type(values[number]).__name__})")
    before = sorted(os.listdir("."))
    try:
        ended = try_it(lambda: verb(*given, **more))
    except Fault as fault:
        raise Fault(f"{name}({', '.join(said)}) {fault}") from fault
    check(sorted(os.listdir(".")) == before or "out" in " ".join(said), f"{name}({', '.join(said)}) leaves files")
    return ended


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
    ended = _say(bench, draw) if name == "say" else _strike(bench, draw, name, lambda: INTERRUPTED[name](bench))
    return f"{name} {ended}"


def _strike(bench: Bench, draw: random.Random, name: str, run: Callable[[], object]) -> str:
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    after = draw.uniform(2e-6, 1.1 * bench.seconds[name])
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, after)
            run()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt as interrupt:
        bench.last = interrupt  # its traceback lives on, as in a notebook
        return "interrupted"
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
