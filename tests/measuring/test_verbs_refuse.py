"""What no verb can do: empty, repeated, of the wrong type, too large. One sentence, before the model runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.labs import noise

import illava_lab as il
from illava_lab.measuring import measure
from illava_lab.measuring.bench import bench
from illava_lab.measuring.compare import compare


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(autouse=True)
def idle(lab: il.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(lab.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))


WHOLE = "must be a whole number of at least 1, got"
OUT = [({"out": value}, "out must name a folder, or be None, got") for value in ("", "  ", 5, ["a"], True)]
SEEDS = [({"seed": value}, "seed must be a whole number from 0 to") for value in (-1, 2**70, 0.5, "1", None, True)]
FLAGS = [({"progress": value}, "progress must be True or False, got") for value in ("no", 1, None)]
SHARED = [*OUT, *SEEDS, *FLAGS]

BENCH: list[tuple[dict[str, Any], str]] = [
    ({"batch_sizes": []}, "batch_sizes must hold at least one, got an empty list"),
    ({"batch_sizes": ()}, "batch_sizes must hold at least one"),
    ({"batch_sizes": [2, 1, 2]}, r"batch_sizes holds one twice: \[2, 1, 2\]"),
    ({"batch_sizes": [0]}, f"batch_sizes {WHOLE} 0"),
    ({"batch_sizes": [1.0]}, f"batch_sizes {WHOLE} 1.0"),
    ({"batch_sizes": [True]}, f"batch_sizes {WHOLE} True"),
    ({"batch_sizes": [[1]]}, rf"batch_sizes {WHOLE} \[1\]"),
    ({"batch_sizes": None}, "batch_sizes must be a list of whole numbers of at least 1, got None"),
    ({"batch_sizes": "12"}, "batch_sizes must be a list of whole numbers"),
    ({"batch_sizes": {1: 2}}, "batch_sizes must be a list of whole numbers"),
    ({"batch_sizes": [10**12]}, r"batch_sizes must be at most [\d,]+, for whose pictures there is memory, got 1,000"),
    ({"text_tokens": []}, "text_tokens must hold at least one, got an empty list"),
    ({"text_tokens": [40, 40]}, r"text_tokens holds one twice: \[40, 40\]"),
    ({"text_tokens": [-5]}, f"text_tokens {WHOLE} -5"),
    ({"text_tokens": ["40"]}, f"text_tokens {WHOLE} '40'"),
    ({"text_tokens": "40"}, "text_tokens must be a list of whole numbers"),
    ({"text_tokens": [1]}, "text_tokens must be at least"),
    ({"text_tokens": [10**9]}, r"takes [\d,]+ positions, but the model knows 2,048"),
    ({"new_tokens": 0}, f"new_tokens {WHOLE} 0"),
    ({"new_tokens": 10**6}, "new_tokens must be from 1 to [\\d,]+, got 1000000"),
    ({"rounds": 0}, f"rounds {WHOLE} 0"),
    ({"rounds": "5"}, f"rounds {WHOLE} '5'"),
    ({"image": []}, r"image must show at least one image or video, got \[\]"),
    ({"image": 5}, "an image must be"),
    *SHARED,
]


@pytest.mark.parametrize(("arguments", "says"), BENCH)
def test_bench(lab: il.Lab, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(il.LabError, match=says) as caught:
        bench(lab, "fastv", **{"progress": False, **arguments})
    assert "\n" not in str(caught.value)


COMPARE: list[tuple[dict[str, Any], str]] = [
    ({"batch_size": 0}, f"batch_size {WHOLE} 0"),
    ({"batch_size": [8]}, rf"batch_size {WHOLE} \[8\]"),
    ({"batch_size": 10**12}, r"batch_size must be at most [\d,]+, for whose pictures there is memory"),
    ({"limit": 0}, f"limit {WHOLE} 0"),
    ({"limit": "4"}, f"limit {WHOLE} '4'"),
    ({"limit": 4.0}, f"limit {WHOLE} 4.0"),
    ({"timing": "no"}, "timing must be True or False, got 'no'"),
    ({"task": 5}, "task must be 'test', .* or a Parquet file, got 5"),
    ({"task": ""}, "task must be 'test', .* or a Parquet file, got ''"),
    ({"task": None}, "task must be 'test', .* or a Parquet file, got None"),
    *SHARED,
]


@pytest.mark.parametrize(("arguments", "says"), COMPARE)
def test_compare(lab: il.Lab, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(il.LabError, match=says) as caught:
        compare(lab, "fastv", **{"limit": 4, "progress": False, **arguments})
    assert "\n" not in str(caught.value)


FIDELITY: list[tuple[dict[str, Any], str]] = [
    ({"images": [[]]}, r"images must show at least one image or video, got \[\]"),
    ({"images": []}, "images must be a list with one entry for each question"),
    ({"questions": []}, "questions must be a list with one entry for each question"),
    ({"max_new_tokens": 0}, f"max_new_tokens {WHOLE} 0"),
    ({"max_new_tokens": 10**6}, "max_new_tokens must be from 1 to"),
    *SHARED,
]


@pytest.mark.parametrize(("arguments", "says"), FIDELITY)
def test_fidelity(lab: il.Lab, arguments: dict[str, Any], says: str) -> None:
    asked: dict[str, Any] = {"images": [noise()], "questions": ["What?"], "progress": False}
    with pytest.raises(il.LabError, match=says):
        il.fidelity(lab, strategy="fastv", **{**asked, **arguments})


@pytest.mark.parametrize("given", [None, "embedded", ["none", "illava"]])
def test_a_lab_comes_first(given: Any) -> None:
    task = il.load_task("test").limited(4)
    for verb in (
        lambda: il.chat(given, noise()).__enter__(),
        lambda: il.compare(given, "illava", limit=4),
        lambda: il.bench(given, "illava"),
        lambda: il.fidelity(given, [noise()], ["What?"], "illava"),
        lambda: il.converse(given, task),
        lambda: il.predict(given, task),
    ):
        with pytest.raises(il.LabError, match=f"lab must be a Lab, .*, got {type(given).__name__}"):
            verb()


def test_tasks_and_answers(lab: il.Lab) -> None:
    task = il.load_task("test").limited(4)
    for verb, says in (
        (lambda: il.converse(lab, "test"), r"task must be a Task, such as load_task\('test'\), got 'test'"),
        (lambda: il.predict(lab, "test"), r"task must be a Task, such as load_task\('test'\), got 'test'"),
        (lambda: il.predict(lab, task, 0), f"batch_size {WHOLE} 0"),
        (lambda: il.correct([], task), "answers must be a list of 4, one for each question of the task"),
        (lambda: il.correct("abcd", task), "answers must be a list of 4"),
        (lambda: il.paired_difference([], [], []), "must have one entry for each question, got 0, 0 and 0"),
        (lambda: il.paired_difference([1, 0], [1], ["a", "b"]), "must have one entry .* got 2, 1 and 2"),
    ):
        with pytest.raises(il.LabError, match=says):
            verb()


@pytest.mark.parametrize("confidence", [0, 1, 95, -0.5, "0.95", None, True, float("nan")])
def test_a_confidence_is_a_share(confidence: Any) -> None:
    with pytest.raises(il.LabError, match="confidence must be a number between 0 and 1, such as 0.95, got"):
        il.paired_difference([1, 0, 1], [0, 0, 1], ["a", "b", "c"], confidence=confidence)


def test_times_and_rounds(lab: il.Lab) -> None:
    inputs = lab.inputs([noise()], ["What?"])
    for verb, says in (
        (lambda: measure.speeds(lab.model, inputs, [None], rounds=0), f"rounds {WHOLE} 0"),
        (lambda: measure.speeds(lab.model, inputs, [None], new_tokens=0), f"new_tokens {WHOLE} 0"),
        (lambda: measure.stage_seconds(lab.model, inputs, 0), f"rounds {WHOLE} 0"),
        (lambda: measure.ratio([], []), "must hold equally many rounds, got 0 and 0"),
        (lambda: measure.ratio([1.0], [1.0, 2.0]), "must hold equally many rounds, got 1 and 2"),
    ):
        with pytest.raises(il.LabError, match=says):
            verb()


TABLES = [pd.DataFrame(), pd.DataFrame({"strategy": ["none"]}), "table.csv", None]


@pytest.mark.parametrize("table", TABLES, ids=range(len(TABLES)))
def test_a_table_is_one_of_compare(table: Any) -> None:
    for verb in (
        il.summary, il.summary_by_category, il.plots.tradeoff, il.plots.tradeoff_picture, il.plots.categories,
        lambda table: il.difference(table, 0, 1),
    ):  # fmt: skip
        with pytest.raises(il.LabError, match="table"):
            verb(table)


def test_a_table_in_which_everything_failed_is_one_sentence() -> None:
    measured = ("accuracy", "prefill_flops", "cache_bytes")
    columns = {"strategy": ["none"], "status": ["broken"], "keep": [1.0]} | {name: [float("nan")] for name in measured}
    with pytest.raises(il.LabError, match='the table has no row of strategy "none" to compare with'):
        il.summary(pd.DataFrame(columns))


def test_whole_numbers_of_any_type_are_taken(lab: il.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    table = bench(lab, "stride", batch_sizes=np.array([2, 1]), rounds=np.int64(1), new_tokens=np.int32(1), seed=np.int8(3),
                  answers=np.array([1, 2]), largest_batch=np.int8(2), progress=False)  # fmt: skip
    assert table["batch"].tolist() == [2, 2, 2, 1, 1, 1] and set(table["status"]) == {"ok"}
    assert lab.ask(noise(), "What color?", max_new_tokens=np.int64(1)).timing.tokens == 1
    assert torch.is_tensor(lab.inputs([noise()], ["What?"])["input_ids"])
