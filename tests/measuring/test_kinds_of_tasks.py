"""Every kind of task in every verb: what is asked together is answered as alone, and conversations as `il.chat` has them."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.labs import small_lab
from helpers.onevision import onevision_lab
from helpers.rehearsal import rehearsing
from helpers.task_files import read, rows, write

import illava_lab as il
from illava_lab.measuring.batches import batches
from illava_lab.measuring.controls import with_other_images
from illava_lab.measuring.predict import answer_tokens
from illava_lab.session.talk import talk

module = importlib.import_module("illava_lab.measuring.predict")  # `illava_lab.measuring.predict` is the function
KINDS = (("image", (1, 1, 1), 128), ("images", (2, 3, 1), 64), ("frames", (8, 9, 8), 64))
STRATEGIES = ("none", "illava", "fastv")


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return onevision_lab()


def schedule(lab: il.Lab, strategy: str) -> il.Schedule | None:
    return None if strategy == "none" else il.Schedule.for_budget(strategy, lab.model, keep=0.5)


def by_chat(lab: il.Lab, task: il.Task, strategy: str) -> list[str]:
    """What each conversation of a task says, held by itself."""
    said = {}
    for image_id, own in task.samples.groupby("image_id"):
        with il.chat(lab, task.shown(image_id), strategy, None if strategy == "none" else 0.5) as conversation:
            said |= {row.Index: conversation.say(row.question).text for row in own.sort_values("turn").itertuples()}
    return [said[row] for row in task.samples.index]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("kind", "counts", "size"), KINDS)
def test_questions_of_one_batch_are_answered_as_alone(
    lab: il.Lab, tmp_path: Path, kind: str, counts: tuple[int, ...], size: int, strategy: str
) -> None:
    task, seen = read(tmp_path, kind, counts, size=size), []
    with il.attach(lab.model, strategy, schedule(lab, strategy)):
        together = il.predict(lab, task, 4, seen.append)
        alone = [
            lab.answer([task.shown(row.image_id)], [row.question], max_new_tokens=answer_tokens(lab, task))[0]
            for row in task.samples.itertuples()
        ]
    assert together == alone and len(set(together)) > 1
    assert sum(seen) == len(task) and len(seen) == 2


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("kind", "counts", "size"), KINDS)
def test_conversations_side_by_side_are_those_of_chat(
    lab: il.Lab, tmp_path: Path, kind: str, counts: tuple[int, ...], size: int, strategy: str
) -> None:
    table = rows(kind, counts, (3, 1, 4), size)
    task = il.load_task(write(tmp_path, [table[row] for row in np.random.default_rng(0).permutation(len(table))]))
    with il.attach(lab.model, strategy, schedule(lab, strategy)):
        said = il.predict(lab, task)
    assert len({len(text) for text in said}) > 3, "answers end at different times"
    assert said == by_chat(lab, task, strategy)
    assert said == il.converse(lab, task, strategy, None if strategy == "none" else 0.5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_graphs_they_are_the_same(lab: il.Lab, tmp_path: Path, strategy: str) -> None:
    task = read(tmp_path, "images", (2, 3, 2), turns=(3, 1, 4))
    with il.attach(lab.model, strategy, schedule(lab, strategy)):
        said = il.predict(lab, task)
    with rehearsing() as recorder, il.attach(lab.model, strategy, schedule(lab, strategy), graphs=True):
        assert [il.predict(lab, task) for _ in range(3)] == [said] * 3
    assert recorder.replayed > 20


@pytest.mark.parametrize("kind", ["clip-llama", "qwen2-vl"])
def test_so_are_those_of_other_families(kind: str, tmp_path: Path) -> None:
    lab = small_lab(kind)
    lab.model.generation_config.eos_token_id = list(range(0, lab.model.config.get_text_config().vocab_size, 31))
    try:
        shows = ("images", (1, 2)) if kind == "clip-llama" else ("frames", (4, 2))
        task = read(tmp_path, *shows, turns=(2, 3), size=56)
        with il.attach(lab.model, "fastv", schedule(lab, "fastv")):
            said = il.predict(lab, task)
        assert said == by_chat(lab, task, "fastv") and len(set(said)) > 1
    finally:
        lab.model.generation_config.eos_token_id = None


def test_later_turns_hear_the_earlier_ones(lab: il.Lab, tmp_path: Path) -> None:
    task = read(tmp_path, turns=(2, 2, 2))
    first = [row for row, turn in enumerate(task.samples["turn"]) if turn == 0]
    single = il.Task("single", task.samples.drop(columns="turn"), task.images)
    heard, alone = il.predict(lab, task), il.converse(lab, single)
    assert heard == alone, "without turns a conversation takes the rows in their order"
    again = il.load_task(write(tmp_path, [row | {"turn": 1 - row["turn"]} for row in rows(turns=(2, 2, 2))]))
    assert all(il.predict(lab, again)[row] != heard[row] for row in first)
    with pytest.raises(il.LabError, match="question must be a sentence"):
        talk(lab, [task.shown("i0")], [["a", " "]])


def test_videos_stand_beside_those_of_their_length(tmp_path: Path) -> None:
    task = read(tmp_path, "frames", (3, 2, 3))
    assert batches(task, 3) == [[[0], [1], [4]], [[5]], [[2], [3]]]
    task = read(tmp_path, "frames", (3, 2, 3), turns=(2, 1, 2))
    assert batches(task, 3) == [[[0, 1], [3, 4]], [[2]]]


def test_what_a_model_cannot_take_is_refused_before_any_work(
    lab: il.Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film, long = read(tmp_path, "frames", (8, 8)), read(tmp_path, "images", (1, 4, 2), turns=(1, 2, 1))
    embedded = il.load()
    monkeypatch.setattr(il.Lab, "_generate", lambda *_: pytest.fail("work was begun"))
    monkeypatch.setattr(type(lab.model), "generate", lambda *_, **__: pytest.fail("work was begun"))
    for verb in (il.predict, il.converse, il.controls, il.compare):
        more = {"strategy": "illava", "task": film, "progress": False} if verb is il.compare else {"task": film}
        with pytest.raises(
            il.LabError, match="embedded is of the family 'llava', which takes no videos; those that do"
        ):
            verb(embedded, **more)
    monkeypatch.setattr(lab.model.config.get_text_config(), "max_position_embeddings", 200)
    for verb in (il.predict, il.converse, il.controls):
        with pytest.raises(il.LabError, match="takes 2.. positions, but the model knows 200"):
            verb(lab, long)


@pytest.mark.parametrize(
    ("kind", "counts", "turns"),
    [("images", (2, 3, 4), None), ("frames", (8, 9), None), ("image", (1, 1, 1), (2, 3, 1))],
)
def test_compare(
    lab: il.Lab,
    tmp_path: Path,
    kind: str,
    counts: tuple[int, ...],
    turns: tuple[int, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "answer_tokens", lambda *_: 4)  # whatever is right, as what is right follows below
    task = read(tmp_path, kind, counts, turns)
    said = il.predict(lab, task)
    answered = task.samples.assign(answer=[text if row % 2 else "nothing" for row, text in enumerate(said)])
    task = il.Task("own", answered, task.images, task.kind)
    table = il.compare(
        lab, ["illava"], keep=0.5, flops=0.7, task=task, batch_size=2, progress=False, out=tmp_path / "o"
    )
    assert list(table["status"]) == ["ok"] * 3 and list(table["samples"]) == [len(task)] * 3
    with il.attach(lab.model, "illava", schedule(lab, "illava")):
        reduced = il.correct(il.predict(lab, task, 2), task)
    assert list(table["accuracy"][:2]) == [il.correct(said, task).mean(), reduced.mean()]
    assert (table["prefill_flops"][1:] < table["prefill_flops"][0]).all() and (table["prefill_ratio"] > 0).all()
    # Questions about one image_id are drawn together.
    bare, ids = il.correct(said, task), task.samples["image_id"]
    wanted = il.paired_difference(reduced, bare, ids)
    assert tuple(table.loc[1, ["difference", "difference_low", "difference_high"]]) == tuple(wanted)
    other = il.Task("own", answered, task.images, "images" if kind == "frames" else kind)
    if kind == "frames":
        with pytest.raises(il.LabError, match="name another folder"):
            il.compare(lab, ["illava"], 0.5, task=other, batch_size=2, progress=False, out=tmp_path / "o")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "counts"), [("images", (3, 2)), ("frames", (8, 9))])
def test_bench_and_fidelity_take_what_a_task_shows(
    lab: il.Lab, tmp_path: Path, kind: str, counts: tuple[int, ...]
) -> None:
    task = read(tmp_path, kind, counts)
    shown = [task.shown(image_id) for image_id in task.samples["image_id"]]
    table = il.fidelity(
        lab, shown, list(task.samples["question"]), ["none", "illava"], max_new_tokens=4, progress=False
    )
    assert len(table) == 2 * len(task) and table["equal"][table["strategy"] == "none"].all()
    table = il.bench(lab, "illava", 0.5, image=shown[0], rounds=1, new_tokens=2, answers=[1], progress=False)
    assert list(table["status"]) == ["ok"] * 3
    # Images are counted, and those of one prompt come in one time.
    rate = table["images_per_second"] * (table["prefill_ms"] + 2 * table["decode_ms"]) / 1e3
    assert np.allclose(rate, counts[0])


def test_controls_are_what_their_names_say(lab: il.Lab, tmp_path: Path) -> None:
    task = read(tmp_path, "images", (2, 3, 2, 3, 4))
    others = with_other_images(task)
    swapped = {"i0": "i2", "i2": "i0", "i1": "i3", "i3": "i1", "i4": "i0"}
    assert {own: next(i for i, data in task.images.items() if data == shown) for own, shown in others.images.items()} == swapped  # fmt: skip
    bare = il.predict(lab, task)
    answered = [text if row in (0, 1, 4) else "Token50" if row % 2 else "token50 " for row, text in enumerate(bare)]
    task = il.Task("own", task.samples.assign(answer=answered), task.images, "images")
    table = il.controls(lab, task, 3)
    assert list(table["category"]) == ["a", "b", "all"] and list(table["questions"]) == [5, 5, 10]
    right = pd.Series(il.correct(il.predict(lab, task), task))
    blind = pd.Series(il.correct(il.predict(lab, with_other_images(task)), task))
    for column, expected in (("accuracy", right), ("other_images", blind)):
        assert list(table[column]) == [expected[::2].mean(), expected[1::2].mean(), expected.mean()]
    assert list(table["most_frequent"]) == [3 / 5, 4 / 5, 7 / 10], "case and outer space do not count"
    with il.attach(lab.model, "fastv", il.Schedule(llm={1: 1})):
        assert not il.controls(lab, task, 3).equals(table)
    with pytest.raises(il.LabError, match="at least two different things"):
        il.controls(lab, il.Task("one", task.samples[:2], task.images, "images"))
