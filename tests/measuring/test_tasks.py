"""Tasks and their files: what is read, what is shown, what is refused and how."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.task_files import png, read, rows, write

import illava_lab as il
from illava_lab.measuring import task_names
from illava_lab.measuring.task_files import load_task

Rows = list[dict[str, Any]]


def test_what_a_question_shows_is_what_the_file_holds_in_its_order(tmp_path: Path) -> None:
    one, several, film = (read(tmp_path, kind, counts) for kind, counts in
                          (("image", (1, 1)), ("images", (2, 3)), ("frames", (8, 9))))  # fmt: skip
    assert (one.kind, several.kind, film.kind) == ("image", "images", "frames")
    assert np.array_equal(one.shown("i1"), one.image("i1"))
    shown, video = several.shown("i1"), film.shown("i1")
    assert isinstance(shown, list) and isinstance(video, il.Video)
    for number, (picture, frame) in enumerate(zip(shown, video.frames, strict=False)):
        expected = np.asarray(il.read_image(png(10 + number)))
        assert np.array_equal(picture, expected) and np.array_equal(frame, expected)
    assert len(shown) == 3 and len(video) == 9, "every frame is shown"
    for task in (several, film):
        task.check_images()
        with pytest.raises(il.LabError, match=r"not one picture: use task\.shown"):
            task.image("i0")
        with pytest.raises(il.LabError, match="has no image_id 'i7'"):
            task.shown("i7")
    assert "turn" not in one.samples and not one.conversations
    talks = read(tmp_path, turns=(2, 1, 3))
    assert talks.conversations and talks.samples["turn"].tolist() == [0, 1, 0, 0, 1, 2]
    assert [task.size for task in (one, several, film, talks)] == [
        "4 questions about 2 images", "4 questions about 2 sets of images", "4 questions about 2 videos",
        "6 questions in conversations about 3 images",
    ]  # fmt: skip


def test_a_limit_takes_whole_conversations(tmp_path: Path) -> None:
    task = read(tmp_path, "frames", (2,) * 9, turns=(3,) * 9)
    part = task.limited(13)
    assert len(part) == 12 and part.kind == "frames" and set(part.images) == set(part.samples["image_id"])
    assert part.samples.groupby("image_id")["turn"].agg(list).tolist() == [[0, 1, 2]] * 4


def test_fingerprints_tell_everything_apart_and_old_ones_stand(tmp_path: Path) -> None:
    old = load_task("validation").limited(8)
    digest = hashlib.sha256(old.samples.to_csv().encode())
    for image_id, data in old.images.items():
        digest.update(image_id.encode() + hashlib.sha256(data).digest())
    assert old.digest() == digest.hexdigest()[:16]

    tables = {kind: rows(kind, (2, 2)) for kind in ("images", "frames")}
    tables["in conversations"] = rows("images", (2, 2), turns=(2, 2))
    tables["in another order"] = [row | {"images": row["images"][::-1]} for row in tables["images"]]
    # As many pictures in all, cut elsewhere.
    tables["of one"], tables["of the other"] = rows("images", (1, 2)), rows("images", (2, 1))
    first = [png(1), png(2), png(3)]
    for name, cut in (("of one", 1), ("of the other", 2)):
        for row in tables[name]:
            row["images"] = first[:cut] if row["image_id"] == "i0" else first[cut:]
    found = {name: load_task(write(tmp_path, table)).digest() for name, table in tables.items()}
    assert len(set(found.values())) == len(found)


def without(column: str) -> Callable[[Rows], Rows]:
    return lambda table: [{name: value for name, value in row.items() if name != column} for row in table]


def with_(**values: Any) -> Callable[[Rows], Rows]:
    """The last row with other values."""
    return lambda table: [*table[:-1], table[-1] | values]


def both(table: Rows) -> Rows:
    return [row | {"images": [png(1)]} for row in table]


def turned(*turns: Any) -> Callable[[Rows], Rows]:
    return lambda table: [row | {"turn": turn} for row, turn in zip(table, turns, strict=False)]


BAD: list[tuple[str, Callable[[Rows], Rows], str]] = [
    *(("image", without(name), f"lacks the column '{name}'; it needs question, answer") for name in ("question", "answer", "category", "image_id")),
    ("image", without("image"), r"lacks the column 'image' \(or 'images', or 'frames'\)"),
    ("image", both, "has the columns 'image' and 'images'; it needs exactly one of them: 'image' holds"),
    ("image", with_(answer="  "), "row 3: the column 'answer' holds no usable value: '  ' is no text that is not empty"),
    ("image", with_(question=None), "row 3: the column 'question' holds no usable value"),
    ("image", with_(category=None), "row 3: the column 'category' holds no usable value"),
    ("image", with_(image=b""), "row 3: the column 'image' holds no usable value: b'' is no encoded picture"),
    ("image", with_(image=None), "row 3: the column 'image' holds no usable value: None is no encoded picture"),
    ("image", lambda table: [row | {"image": "a path"} for row in table], "row 0: .*'a path' is no encoded picture"),
    ("image", lambda table: [row | {"answer": b"yes"} for row in table], "row 0: the column 'answer' .* b'yes' is no text"),
    ("image", lambda table: [row | {"answer": ["yes"]} for row in table], "row 0: the column 'answer' .* is no text"),
    ("image", lambda table: [row | {"image": [row["image"]]} for row in table], "row 0: .* is no encoded picture"),
    ("images", with_(images=[]), "row 3: the column 'images' holds no usable value: .* is no list of encoded pictures"),
    ("images", with_(images=[png(1), None]), "row 3: the column 'images' holds no usable value"),
    ("images", with_(images=[png(1), b""]), "row 3: the column 'images' holds no usable value"),
    ("images", with_(images=None), "row 3: the column 'images' holds no usable value"),
    ("images", lambda table: [row | {"images": ["a", "b"]} for row in table], "row 0: the column 'images'"),
    ("images", lambda table: [row | {"images": png(1)} for row in table], "row 0: .* is no list of encoded pictures"),
    ("frames", with_(frames=[]), "row 3: the column 'frames' holds no usable value: .* is no list of encoded frames"),
    ("image", with_(image=png(99)), "row 3: image_id 'i1' shows something else than in row 2"),
    ("images", with_(images=[png(99), png(1)]), "row 3: image_id 'i1' shows something else than in row 2"),
    ("image", turned(0, 1, 0, None), "row 3: the column 'turn' holds no value; all rows need one"),
    ("image", turned(0, 1, 0, 2), "row 2: the turns of image_id 'i1' must be 0 to 1, each once, got 0, 2"),
    ("image", turned(0, 0, 0, 1), "row 0: the turns of image_id 'i0' must be 0 to 1, each once, got 0, 0"),
    ("image", turned(1, 2, 0, 1), "row 0: the turns of image_id 'i0' must be 0 to 1, each once, got 1, 2"),
    ("image", turned(0, -1, 0, 1), "row 0: the turns of image_id 'i0' must be 0 to 1, each once, got -1, 0"),
    ("image", turned(0.0, 1.0, 0.0, 1.0), "row 0: the column 'turn' must hold whole numbers from 0, got 0.0"),
    ("image", turned("0", "1", "0", "1"), "row 0: the column 'turn' must hold whole numbers from 0, got '0'"),
    ("image", turned(False, True, False, True), "row 0: the column 'turn' must hold whole numbers from 0, got "),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spoil", "says"), BAD)
def test_a_bad_file_is_refused_by_column_and_row(
    tmp_path: Path, kind: str, spoil: Callable[[Rows], Rows], says: str
) -> None:
    path = write(tmp_path, spoil(rows(kind, (1, 1) if kind == "image" else (2, 3))))
    with pytest.raises(il.LabError, match=f"task '.*task.parquet'.*({says})"):
        load_task(path)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows())
    pq.write_table(table.append_column("answer", table["answer"]), tmp_path / "twice.parquet")
    with pytest.raises(il.LabError, match="has the column 'answer' twice|not a Parquet file that can be read"):
        load_task(tmp_path / "twice.parquet")


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(il.LabError, match="not a Parquet file"):
        load_task(tmp_path / "text.parquet")
    pd.DataFrame(rows()).iloc[:0].to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(il.LabError, match="task '.*' holds no questions"):
        load_task(tmp_path / "empty.parquet")
    with pytest.raises(il.LabError, match="'test', 'validation', 'multi-image', .* or a Parquet file; .*tset"):
        load_task("tset")
    for given in (None, 3, "", b"test"):
        with pytest.raises(il.LabError, match="task must be 'test', "):
            load_task(given)


def test_embedded_tasks_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_names, "data_dir", lambda: tmp_path)
    (tmp_path / "tasks").mkdir()
    with pytest.raises(
        il.LabError, match="this installation of illava-lab lacks the task 'video', expected at .*video"
    ):
        load_task("video")
    pd.DataFrame(rows("frames", (8, 9))).to_parquet(tmp_path / "tasks" / "video-validation.parquet")
    task = load_task("video-validation")
    assert (task.name, task.kind, len(task)) == ("video-validation", "frames", 4)


@pytest.mark.parametrize(
    ("kind", "spoil", "says"),
    [
        ("image", with_(image=png(1)[:60], image_id="broken"), "image 'broken': "),
        ("images", with_(images=[png(1), png(2)[:60]], image_id="broken"), "image 'broken', picture 2 of 2: "),
        ("frames", with_(frames=[png(1), b"x", png(2)], image_id="broken"), "image 'broken', frame 2 of 3: "),
        (
            "frames",
            with_(frames=[png(1), png(2, 32)], image_id="broken"),
            "image 'broken': .* must be of one size, got",
        ),
    ],
)
def test_a_broken_picture_is_found_before_the_work(
    tmp_path: Path, kind: str, spoil: Callable[[Rows], Rows], says: str
) -> None:
    task = load_task(write(tmp_path, spoil(rows(kind, (1, 1)))))
    with pytest.raises(il.LabError, match=f"task '.*', {says}"):
        task.check_images()


def test_a_limit_takes_whole_images_of_every_category() -> None:
    task = load_task("test")
    sizes = task.samples["image_id"].value_counts()
    for limit in (40, 100, 200):
        part = task.limited(limit)
        assert limit - sizes.max() < len(part) <= limit
        assert part.categories == task.categories
        assert part.samples["image_id"].value_counts().to_dict() == {key: sizes[key] for key in part.images}
        assert part.samples.equals(task.limited(limit).samples)
    assert len(task.limited(1).images) == 1
    assert task.limited(10**9) is task
    for wrong in (0, -3, True, 2.5):
        with pytest.raises(il.LabError, match="limit"):
            task.limited(wrong)


def test_a_task_made_elsewhere_loads(tmp_path: Path) -> None:
    table = load_task("validation").limited(8)
    frame = table.samples.assign(image=[table.images[i] for i in table.samples["image_id"]], extra=1)
    frame["image_id"] = pd.factorize(frame["image_id"])[0]  # numbers are fine too
    frame.to_parquet(tmp_path / "own.parquet")
    own = load_task(tmp_path / "own.parquet")
    assert list(own.samples["question"]) == list(table.samples["question"])
    assert own.image("0").size == table.image(table.samples["image_id"][0]).size
    assert own.digest() != table.digest()
