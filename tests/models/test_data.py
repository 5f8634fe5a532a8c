"""The scenes, their questions and the committed sets: right answers, no leak from test to training, no easy way out."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from illava_lab import paths

DATA = Path(__file__).parents[2] / "data"
sys.path.insert(0, str(DATA))  # the scripts there are no package

import evaluate  # noqa: E402
import make_tasks  # noqa: E402
import questions  # noqa: E402
import scenes  # noqa: E402

SINGULAR = {plural: shape for shape, plural in scenes.PLURALS.items()}


def answer_by_reading(question: str, scene: scenes.Scene) -> str:
    """The answer derived anew, from the words of the question and the boxes of the objects only."""
    words = re.findall(r"[a-z]+", question.lower())
    middle = lambda item: ((item.box[0] + item.box[2]) / 2, (item.box[1] + item.box[3]) / 2)
    colors = [word for word in words if word in scenes.COLORS]
    kinds = [SINGULAR.get(word, word) for word in words if SINGULAR.get(word, word) in scenes.SHAPES]

    def find(color: str | None, kind: str | None) -> list[scenes.Item]:
        return [item for item in scene.shapes if color in (None, item.value) and kind in (None, item.kind)]

    if "above" in words or ("left" in words and "right" in words):
        (a,), (b,) = (find(color, kind) for color, kind in zip(colors, kinds, strict=True))
        dx, dy = np.subtract(middle(a), middle(b))
        return ("above" if dy < 0 else "below") if "above" in words else ("left" if dx < 0 else "right")
    color, kind = (colors or [None])[0], (kinds or [None])[0]
    if words[0] == "where":
        (item,) = (
            find(color, kind)
            if kind
            else [i for i in scene.items if i.kind == ("digit" if "digit" in words else "word")]
        )
        column, row = (int(value // (scenes.SIZE / 3)) for value in middle(item))
        return scenes.PLACES[3 * row + column]
    if "many" in words or words[0] == "count":
        return str(len(find(color, kind)))
    if words[:2] == ["is", "there"]:
        return "yes" if find(color, kind) else "no"
    if "shape" in words:
        (item,) = find(color, None)
        return item.kind
    if kind:
        (item,) = find(None, kind)
        return item.value
    (item,) = [i for i in scene.items if i.kind == ("word" if "word" in words else "digit")]
    return item.value


@given(st.integers(0, 2**32), st.sampled_from(["train", "validation", "test"]))
@settings(max_examples=150, deadline=None)
def test_every_answer_can_be_derived_from_the_picture(seed, split):
    rng = np.random.default_rng(seed)
    scene = scenes.make_scene(rng, split)
    for question in questions.questions(scene, rng):
        assert answer_by_reading(question.text, scene) == question.answer, question


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_picture_shows_what_the_scene_says(seed):
    scene = scenes.make_scene(np.random.default_rng(seed), "train")
    pixels = np.asarray(scenes.draw(scene)).astype(int)
    assert pixels.shape == (scenes.SIZE, scenes.SIZE, 3)
    boxes = [item.box for item in scene.items]
    for i, (left, top, right, bottom) in enumerate(boxes):
        assert left >= 0 and top >= 0 and right <= scenes.SIZE and bottom <= scenes.SIZE
        for other in boxes[:i]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top, "objects overlap"
    for item in scene.shapes:
        if item.kind != "ring":
            left, top, right, bottom = item.box
            at = pixels[(top + bottom) // 2, (left + right) // 2]
            assert np.abs(at - scenes.COLORS[item.value]).max() <= 16, item


def test_nothing_of_the_test_split_is_drawn_for_training():
    for a, b in [("train", "test"), ("train", "validation"), ("validation", "test")]:
        assert not set(scenes.PHOTOS[a]) & set(scenes.PHOTOS[b])
        assert not set(scenes.digit_indices(a)) & set(scenes.digit_indices(b))
    rng = np.random.default_rng(0)
    drawn = [scenes.make_scene(rng, "train", crowded=bool(i % 2)) for i in range(300)]
    assert {scene.ground.photo for scene in drawn} == set(scenes.PHOTOS["train"])
    used = {int(item.look[0]) for scene in drawn for item in scene.items if item.kind == "digit"}
    assert used <= set(scenes.digit_indices("train"))


FILES = {path.stem: path for path in (*DATA.glob("*.parquet"), *(DATA / "tasks").glob("*.parquet"))}


def pictures(shown: bytes | Sequence[bytes]) -> list[np.ndarray]:
    return [
        np.asarray(Image.open(BytesIO(data))).astype(int) for data in ([shown] if isinstance(shown, bytes) else shown)
    ]


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_committed_sets_are_what_the_script_makes(name: str) -> None:
    task, split = (
        name.removesuffix("validation").removesuffix("-") or "test",
        "validation" if "validation" in name else "test",
    )
    again = pd.DataFrame(make_tasks.rows(task if task in make_tasks.KINDS else "test", split, count=3))
    ours = pd.read_parquet(FILES[name]).head(len(again))
    shows = make_tasks.KINDS[task].shows
    pd.testing.assert_frame_equal(ours.drop(columns=shows), again.drop(columns=shows), check_dtype=False)
    for before, now in zip(ours[shows], again[shows], strict=True):
        for old, new in zip(pictures(before), pictures(now), strict=True):
            assert np.abs(old - new).mean() < 1, "other releases of Pillow may round differently, not draw differently"


@pytest.mark.parametrize("name", ["multi-image", "video", "fine", "conversation"])
def test_a_task_is_large_and_has_no_easy_way_out(name: str) -> None:
    table = pd.read_parquet(FILES[name])
    counts = table["category"].value_counts()
    assert len(table) >= 600 and set(counts.index) == set(make_tasks.KINDS[name].categories) and counts.min() >= 60
    blind = table.groupby("category")["answer"].agg(lambda answers: answers.value_counts(normalize=True).iloc[0])
    assert blind.max() < 0.65 and blind.mean() < 0.4


def test_the_test_set_is_large_balanced_and_has_no_easy_way_out():
    table = pd.read_parquet(DATA / "test.parquet")
    assert len(table) >= 1000 and table["image_id"].nunique() >= 250
    counts = table["category"].value_counts()
    assert set(counts.index) == set(scenes.CATEGORIES) and counts.min() >= 100
    # What a model reaches that looks at no picture and gives the commonest answer to each kind of question.
    blind = table.groupby("category")["answer"].agg(lambda answers: answers.value_counts(normalize=True).iloc[0])
    assert blind.drop(["exists", "relation"]).max() < 0.35
    assert blind["exists"] < 0.6 and blind["relation"] < 0.4


# ---------------------------------------------------------------------------------------------- training
def test_training_from_its_seed_gives_the_same_losses(tmp_path: Path) -> None:
    command = ["train.py", "llava", "eyes", "--stop", "2", "--threads", "1", "--no-compile", "--state"]
    subprocess.run([sys.executable, *command, str(tmp_path)], cwd=DATA, check=True, capture_output=True)
    found = pd.read_json(tmp_path / "eyes.jsonl", lines=True).melt("step", var_name="loss")
    wanted = pd.read_csv(DATA / "first_losses.csv").query("model == 'llava' and step <= 2")
    both = found.merge(wanted, on=["step", "loss"])
    assert len(both) == len(wanted) == 4
    assert both["value_x"].to_list() == pytest.approx(both["value_y"].to_list(), rel=1e-4)


# --------------------------------------------------------------------------------------------- what they reach
def test_what_the_models_reach_leaves_out_a_model_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(paths, "EMBEDDED_MODELS", {"embedded:onevision": str(tmp_path / "not-here")})
    monkeypatch.setattr(evaluate, "answers", lambda lab, model, *_: asked.append(f"{model} is {lab.source}"))
    monkeypatch.setattr(evaluate, "captions", lambda: 1.0)
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    evaluate.main()
    assert asked == ["embedded is embedded"]
    assert "embedded:onevision is left out: this release of illava-lab comes without" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--model", "embedded:onevision"])
    with pytest.raises(SystemExit) as left:
        evaluate.main()
    assert left.value.code == 2 and "comes without 'embedded:onevision'" in capsys.readouterr().err
