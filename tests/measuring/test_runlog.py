"""The folder of a sweep: what is damaged in it, planted in it or full is one sentence, and no finished row is lost."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.odd_runlogs import compared, finished, judge

import illava_lab as il
from illava_lab.measuring.rows import check_out
from illava_lab.views import plots


@pytest.fixture(scope="module")
def lab() -> Iterator[il.Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield il.load()
    torch.set_num_threads(threads)


TASK = il.load_task("test").limited(1)


def run(lab: il.Lab, out: Any, strategies: Any = ("random", "fastv")) -> pd.DataFrame:
    return finished(lab, TASK, out, strategies)


@pytest.fixture(scope="module")
def good(lab: il.Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "run"
    run(lab, folder)
    return folder


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(il.LabError) as caught:
        call()
    said = str(caught.value)
    assert said.isprintable() and 10 < len(said) < 600
    return said


# ---------------------------------------------------------------------------------------------- odd logs
@pytest.mark.parametrize("seed", range(40))
def test_odd_logs_are_one_sentence_or_the_same_table(lab: il.Lab, good: Path, tmp_path: Path, seed: int) -> None:
    fault = judge(seed, lab, TASK, good, tmp_path / "odd")
    assert fault is None, fault


LINES: dict[str, tuple[int, Callable[[str], str], str]] = {
    "a list": (2, lambda line: "[]", "line 3 of .* cannot be read (it is no row)"),
    "no JSON": (1, lambda line: line[:-9], "line 2 of .* cannot be read (it is no JSON)"),
    "a missing key": (1, lambda line: line.replace('"label"', '"lable"'), "line 2 of .* (its check sum is another)"),
    "another digit": (2, lambda line: line.replace("0.5", "0.7"), "line 3 of .* (its check sum is another)"),
    "not UTF-8": (2, lambda line: line[:50] + "\udcff" + line[50:], "line 3 of .* (it is not UTF-8)"),
    "deep": (1, lambda line: "[" * 200_000, "line 2 of .* (it is no JSON)"),
    "no check sum": (1, lambda line: line[: line.rindex(", ")] + "}", "line 2 of .* (it has no check sum)"),
    "a garbled head": (0, lambda line: line[3:], "is no log of a run: its first line cannot be read"),
    "a head without settings": (0, lambda line: '{"a": 1}', "is no log of a run: its first line cannot be read"),
    "a later version": (0, lambda line: line.replace('"version": 1', '"version": 2'), "another version of the lab (format 2,"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LINES)
def test_a_damaged_line_is_named_and_nothing_is_lost(lab: il.Lab, good: Path, tmp_path: Path, kind: str) -> None:
    number, change, says = LINES[kind]
    out = tmp_path / "out"
    shutil.copytree(good, out)
    lines = (out / "run.jsonl").read_text().splitlines()
    lines[number] = change(lines[number])
    (out / "run.jsonl").write_bytes("\n".join([*lines, ""]).encode(errors="surrogateescape"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    said = refused(lambda: run(lab, out))
    start, _, end = says.partition(".*")
    assert start in said and end.strip() in said and "another folder" in said
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    if "delete that line" in said:  # does what it says
        del lines[number]
        (out / "run.jsonl").write_text("\n".join([*lines, ""]))
        run(lab, out)
        pd.testing.assert_frame_equal(pd.read_csv(out / "table.csv"), pd.read_csv(good / "table.csv"))


def test_an_unfinished_last_line_is_measured_again_and_a_lost_log_loses_no_table(
    lab: il.Lab, good: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "out", (good / "run.jsonl").read_bytes()
    out.mkdir()
    last = whole.rindex(b"\n", 0, len(whole) - 1) + 1
    for length in (last + 1, len(whole) - 1, last):
        (out / "run.jsonl").write_bytes(whole[:length])
        run(lab, out)
        assert (out / "run.jsonl").read_bytes() == whole
    for left in (b"", None):
        (out / "run.jsonl").unlink()
        if left is not None:
            (out / "run.jsonl").write_bytes(left)
        assert "holds a table.csv but no run.jsonl" in refused(lambda: run(lab, out))
    assert (out / "table.csv").read_bytes() == (good / "table.csv").read_bytes()


# ---------------------------------------------------------------------------------------------- links
def test_no_link_is_followed(lab: il.Lab, good: Path, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("mine")
    out.mkdir()
    names = ("table.csv", ".table.csv.part", ".run.jsonl.part", "tradeoff.html", "tradeoff.png", "bench.json")
    for name in names:
        (out / name).symlink_to(victim)
    assert "no run.jsonl" in refused(lambda: run(lab, out)), "a table.csv that leads elsewhere is there, too"
    (out / "table.csv").unlink()
    shutil.copy(good / "run.jsonl", out)
    (out / "table.csv").symlink_to(victim)
    run(lab, out)
    for name in ("table.csv", "tradeoff.html", "tradeoff.png"):
        assert not (out / name).is_symlink() and (out / name).stat().st_size > 100
        assert (out / name).stat().st_mode & 0o777 == 0o666 & ~_umask(), "who could read it still can"
    assert victim.read_text() == "mine"

    log = tmp_path / "log"
    shutil.copy(good / "run.jsonl", log)
    stored = log.read_bytes()
    (out / "run.jsonl").unlink()
    (out / "run.jsonl").symlink_to(log)
    assert "(run.jsonl is a link)" in refused(lambda: run(lab, out))
    (out / "run.jsonl").unlink()
    os.link(log, out / "run.jsonl")
    run(lab, out, ["random", "fastv", "stride"])
    assert log.read_bytes() == stored and (out / "run.jsonl").read_bytes().startswith(stored)


def test_a_log_that_becomes_a_link_in_mid_run_is_not_written_through(
    lab: il.Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("mine")

    class Swaps(il.Scorer):
        name = "test-swaps"

        def score(self, tokens: il.Tokens) -> torch.Tensor:
            (out / "run.jsonl").unlink(missing_ok=True)
            (out / "run.jsonl").symlink_to(victim)
            return tokens.hidden.norm(dim=-1)

    assert "cannot write" in refused(lambda: run(lab, out, [Swaps]))
    assert victim.read_text() == "mine"


def _umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes of POSIX")
@pytest.mark.timeout(60)
def test_pipes_and_folders_in_place_of_files(lab: il.Lab, good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    os.mkfifo(out / "run.jsonl")
    assert "(run.jsonl is no plain file)" in refused(lambda: run(lab, out))
    (out / "run.jsonl").unlink()
    (out / "run.jsonl").mkdir()
    refused(lambda: run(lab, out))
    (out / "run.jsonl").rmdir()
    shutil.copy(good / "run.jsonl", out)
    (out / "table.csv").mkdir()
    assert "a folder named table.csv" in refused(lambda: run(lab, out))
    (out / "table.csv").rmdir()
    os.mkfifo(out / "table.csv")
    run(lab, out)
    assert (out / "table.csv").read_text() == (good / "table.csv").read_text()
    table = run(lab, out)
    (out / "tradeoff.html").unlink()
    (out / "tradeoff.html").mkdir()
    assert "path: cannot write" in refused(lambda: plots.save_html(plots.tradeoff(table), out / "tradeoff.html"))
    assert "path: cannot write" in refused(lambda: plots.tradeoff_png(table, tmp_path / "nowhere" / "x.png"))


# ---------------------------------------------------------------------------------------------- no room
@contextmanager
def no_room_above(size: int) -> Iterator[None]:
    """No file can grow above so many bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource")
    handler, before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_in_mid_run_is_one_sentence_and_loses_nothing(lab: il.Lab, good: Path, tmp_path: Path) -> None:
    whole = (good / "run.jsonl").read_bytes()
    starts = [0, *(i + 1 for i, sign in enumerate(whole) if sign == ord("\n"))]
    for room in (10, starts[1] + 30, starts[2] + 1, starts[3] - 1):  # in the settings, and in each of the rows
        out = tmp_path / f"out{room}"
        with no_room_above(room):
            said = refused(lambda: compared(lab, TASK, out, ("random", "fastv")))
        assert said.startswith("out: cannot write to") and ("finished rows are kept" in said or room == 10)
        kept = (out / "run.jsonl").read_bytes() if room > 10 else b""
        assert kept == whole[: max(start for start in starts if start <= room)], "whole rows, and no part of one"
        assert not list(out.glob(".*")), "no part of a file is left"
        run(lab, out)
        assert (out / "run.jsonl").read_bytes() == whole
        assert (out / "table.csv").read_bytes() == (good / "table.csv").read_bytes()


# ---------------------------------------------------------------------------------------------- names
BAD_NAMES: list[tuple[Any, str]] = [
    ("", "out must name a folder, or be None, got ''"),
    (" \t", "out must name a folder, or be None"),
    (b"out", "out must name a folder, or be None"),
    (3, "out must name a folder, or be None"),
    (True, "out must name a folder, or be None"),
    ("a\0b", "cannot be one: embedded null"),
    (Path("a\0b"), "cannot be one: embedded null"),
    ("x\ud800", "cannot be one"),
    ("x" * 5000, "cannot be one: File name too long"),
    (Path(__file__), "is a file"),
    (str(Path(__file__) / "below"), "out: cannot write to"),
]


@pytest.mark.parametrize(("out", "says"), BAD_NAMES, ids=range(len(BAD_NAMES)))
def test_names_that_no_folder_can_have(lab: il.Lab, out: Any, says: str) -> None:
    picture = TASK.image(TASK.samples["image_id"].iloc[0])
    for verb in (
        lambda: run(lab, out),
        lambda: il.bench(lab, "random", out=out, progress=False),
        lambda: il.fidelity(lab, [picture], ["What color?"], "random", out=out, progress=False),
    ):
        assert says in refused(verb)


def test_halves_of_characters_are_refused_or_spelled_out(lab: il.Lab, tmp_path: Path) -> None:
    samples = TASK.samples.astype(object)
    samples.loc[1, "question"] = "what \ud800?"
    with pytest.raises(il.LabError, match="question must be text, but its character 5"):
        compared(lab, il.Task("mine", samples, TASK.images), tmp_path / "out")
    assert not (tmp_path / "out").exists()

    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    class Fails(il.Scorer):
        name = "test-fails"

        def score(self, tokens: il.Tokens) -> torch.Tensor:
            raise Odd if tokens.stage == "llm" else ValueError("half \ud800 of a\x1b[1m character")

    table = compared(lab, il.Task("mine \ud800", TASK.samples, TASK.images), tmp_path / "out", [Fails])
    assert table["status"].iloc[1] == r"ValueError: half \ud800 of a\x1b[1m character"
    assert pd.read_csv(tmp_path / "out" / "table.csv")["status"].tolist() == table["status"].tolist()
    Fails.stages = ("llm",)
    table = compared(lab, il.Task("mine \ud800", TASK.samples, TASK.images), tmp_path / "out", [Fails])
    assert table["status"].iloc[1] == "Odd: "


def test_another_configuration_is_another_comparison(lab: il.Lab, good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(good, out)
    size = lab.processor.image_processor.size
    try:
        lab.processor.image_processor.image_mean = [0.4, 0.5, 0.5]
        assert "with configuration=" in refused(lambda: run(lab, out))
    finally:
        lab.processor.image_processor.image_mean = [0.5, 0.5, 0.5]
    assert lab.processor.image_processor.size == size
    run(lab, out)


def test_good_names_are_taken(tmp_path: Path) -> None:
    for out in (None, tmp_path, str(tmp_path), tmp_path / "new" / "deep", "ünï 名"):
        check_out(out)
