"""What the cases of `fuzz.py` work on, and what must hold after each."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
import transformers
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers.attached import structure
from helpers.labs import noise, small_lab

import illava_lab as il
from illava_lab.hooks.attach import is_attached

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
        self.task, self.two = (il.load_task("test").limited(limit) for limit in (1, 8))
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
        self.kernels = kernels()
        self.seconds: dict[str, float] = {}  # how long what is to be interrupted takes
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
        modes = _get_current_dispatch_mode_stack()
        for mode in reversed(modes):
            mode.__exit__(None, None, None)
        check(not modes, f"modes of torch stay on: {modes}")
        check(kernels() == self.kernels, "kernels of attention stay switched off")
        check(not hooks_everywhere(), "hooks of all modules stay")
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


def kernels() -> list[bool]:
    """Which kernels of attention torch may choose."""
    return [getattr(torch.backends.cuda, f"{name}_sdp_enabled")() for name in ("flash", "mem_efficient", "math")]


def hooks_everywhere() -> int:
    """Hooks that torch has for every module there is."""
    module = torch.nn.modules.module
    return len(module._global_forward_hooks) + len(module._global_forward_pre_hooks)


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
