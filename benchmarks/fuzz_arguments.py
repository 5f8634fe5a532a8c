"""Public functions with arguments of wrong types and values."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fuzz_bench import ASKED, SCHEDULE, Bench, Fault, check, try_it
from helpers.labs import noise

import illava_lab as il
from illava_lab.views import plots


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
        "converse": (il.converse, [lab, bench.task], {**budget, "batch_size": 2}),
        "predict": (il.predict, [lab, bench.task], {"batch_size": 2}),
        "controls": (il.controls, [lab, bench.two], {"batch_size": 8}),
        "shown": (bench.task.shown, [bench.task.samples["image_id"].iloc[0]], {}),
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
