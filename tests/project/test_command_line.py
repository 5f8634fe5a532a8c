"""The command line as people meet it: what it prints, what it leaves behind, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

import illava_lab as il
from illava_lab.__main__ import _split_jupyter, main
from illava_lab.measuring.tasks import load_task
from illava_lab.method import registry

COMMAND = [sys.executable, "-m", "illava_lab"]
# On busy cores, waiting for a second thread costs more than it brings.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(folder: Path, *words: object) -> subprocess.Popen:
    # Tests that a shell runs in the background are born deaf to Ctrl-C, and so would be what they start.
    deaf = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*COMMAND, *map(str, words)], cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, deaf)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=400)
    finally:
        process.kill()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "test.png"
    path.write_bytes(next(iter(load_task("test").images.values())))
    return path


# ---------------------------------------------------------------------------------------------- whole runs
def test_compare_prints_and_writes(tmp_path: Path) -> None:
    words = "compare --strategies illava,random --keep 0.5 --limit 16 --batch-size 4 --out results/mine"
    code, out, err = finish(start(tmp_path, *words.split()))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("embedded model, task test: ")
    assert [line.split()[0] for line in lines[2:5]] == ["none", "illava", "random"]
    assert max(map(len, lines)) <= 120
    folder = tmp_path / "results" / "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["run.jsonl", "table.csv", "tradeoff.html", "tradeoff.png"]
    assert list(pd.read_csv(folder / "table.csv")["strategy"]) == ["none", "illava", "random"]


@pytest.mark.slow
def test_bench_prints_and_writes(tmp_path: Path) -> None:
    words = "bench --strategies illava --keep 0.5 --presets fastv --batch-sizes 2 --rounds 1 --new-tokens 1 --out fast"
    code, out, err = finish(start(tmp_path, *words.split()))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("Lab('embedded'") and max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines[4:8]] == ["bare", "none", "illava", "fastv"]
    assert sorted(path.name for path in (tmp_path / "fast").iterdir()) == ["bench.json", "run.jsonl", "table.csv"]
    assert "--presets fastv" in json.loads((tmp_path / "fast" / "bench.json").read_text())["about"]["command"]


@pytest.mark.slow
def test_compare_without_out_writes_nothing(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, "compare", "--strategies", "none", "--limit", "8", "--no-timing"))
    assert (code, err) == (0, "") and "none" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_stopped_runs_go_on(tmp_path: Path) -> None:
    words = ["compare", "--strategies", "random,fastv,tome,illava", "--limit", "16", "--no-timing", "--out", "o"]
    log = tmp_path / "o" / "run.jsonl"

    def stop_after(lines: int, with_signal: signal.Signals) -> tuple[int, str, str]:
        process = start(tmp_path, *words)
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") >= lines:
                process.send_signal(with_signal)
                break
            time.sleep(0.02)
        return finish(process)

    code, out, err = stop_after(3, signal.SIGINT)
    assert code == 130 and out == ""
    assert "interrupted; finished rows are kept" in err and "Traceback" not in err
    after_interrupt = log.read_text().splitlines()
    assert 3 <= len(after_interrupt) < 14

    code, _, _ = stop_after(len(after_interrupt) + 2, signal.SIGKILL)
    assert code == -signal.SIGKILL
    after_kill = [line for line in log.read_text().split("\n")[:-1]]
    assert after_kill[: len(after_interrupt)] == after_interrupt
    assert len(after_interrupt) < len(after_kill) < 14

    code, out, err = finish(start(tmp_path, *words))
    assert (code, err) == (0, "")
    finished = log.read_text().splitlines()
    # A measured row keeps its line to the last digit: nothing was done twice.
    assert finished[: len(after_kill)] == after_kill
    labels = [json.loads(line)["label"] for line in finished[1:]]
    assert len(labels) == len(set(labels)) == 13
    assert list(pd.read_csv(tmp_path / "o" / "table.csv")["status"]) == ["ok"] * 13


def test_ask_answers_and_counts_tokens(picture: Path, tmp_path: Path) -> None:
    sample = load_task("test").samples.iloc[0]
    words = ("ask", picture, sample["question"], "--strategy", "illava", "--keep", "0.5", "--verbose")
    code, out, err = finish(start(tmp_path, *words))
    assert (code, err) == (0, "")
    lab = il.load()
    answer = lab.ask(picture, sample["question"], "illava", keep=0.5)
    text, counts, *steps = out.splitlines()
    assert text == answer.text
    encoder, llm = answer.trace.steps[-2].after, answer.trace.steps[-1].after
    patches = answer.trace.steps[0].before
    assert counts.startswith(f"visual tokens: encoder {patches} -> {encoder}, LLM {encoder} -> {llm}; prefill ")
    assert patches > encoder > llm
    assert len(steps) == len(answer.trace.steps)


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, "compare", "--strategies", "ilava"))
    assert (code, out) == (2, "")
    assert err.startswith("illava-lab: error: unknown strategy 'ilava'; did you mean illava") and err.count("\n") == 1


# ---------------------------------------------------------------------------------------------- in this process
def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:  # argparse
        code = stop.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "COMMAND"),
        (("compere",), "invalid choice: 'compere'"),
        (("compare", "--keep", "0.5,x"), "argument --keep: 'x' is no number"),
        (("compare", "--keep", "0.5,"), "argument --keep: '' is no number"),
        (("compare", "--keep", "1.5"), "argument --keep: must be in (0, 1], got 1.5"),
        (("compare", "--limit", "many"), "argument --limit: invalid int value: 'many'"),
        (("compare", "--limit", "0"), "limit must be a whole number of at least 1"),
        (("compare", "--task", "tset"), "there is no file 'tset'"),
        (("compare", "--strategies", ","), "at least one strategy"),
        (("compare", "--limit", "8", "--batch-size", "0"), "batch_size must be"),
        (("compare", "--model", "no/such/folder"), "no/such/folder is neither a folder nor a hub id"),
        (("compare", "--dtype", "int8"), "dtype must be one of"),
        (("compare", "--out", __file__, "--limit", "8"), "cannot write to"),
        (("bench", "--strategies", "ilava"), "unknown strategy 'ilava'"),
        (("bench", "--presets", "fasttv"), "unknown preset 'fasttv'"),
        (("bench", "--batch-sizes", "1,x"), "argument --batch-sizes: '1,x' is no list of whole numbers"),
        (("bench", "--image", "nowhere.png"), "no image file at 'nowhere.png'"),
        (("ask", "nowhere.png", "What?"), "no image file at 'nowhere.png'"),
        (("ask", __file__, "What?"), "is not a picture"),
        (("ask", "{picture}", " "), "question must be a sentence"),
        (("ask", "{picture}", "What?", "--keep", "0.5"), "--keep 0.5 needs a --strategy"),
        (("ask", "{picture}", "What?", "--strategy", "tom"), "unknown strategy 'tom'; did you mean tome"),
        (("strategies", "more"), "unrecognized arguments: more"),
    ],
)
def test_mistakes_are_named(capsys: pytest.CaptureFixture[str], picture: Path, words: tuple, message: str) -> None:
    code, out, err = run(capsys, *(str(word).format(picture=picture) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("illava-lab: error: ") and err.count("\n") == 1
    assert message in err


def test_strategies_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    registry.strategies()
    monkeypatch.setitem(registry._broken, "their_plugin", "ImportError: no module named x")
    code, out, err = run(capsys, "strategies")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert {"name", "none", "fastv", "illava", "random", "tome"} <= set(rows)
    assert "merge" in rows["illava"] and "encoder and llm" in rows["illava"] and "2412.06263" in rows["illava"]
    assert "their_plugin could not be loaded: ImportError" in err


def test_words_unknown_to_the_model_are_pointed_out(capsys: pytest.CaptureFixture[str], picture: Path) -> None:
    code, out, err = run(capsys, "ask", picture, "What color is the xylophone?")
    assert code == 0 and out
    assert "lacks these words of the question: xylophone" in err


def test_lab_hands_options_to_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("illava_lab.course.jupyter.open_lab", lambda folder, extra: seen.append((folder, extra)) or 0)
    assert main(["lab"]) == main(["lab", "course", "--port", "9000"]) == main(["lab", "--no-browser"]) == 0
    assert seen == [(None, []), (Path("course"), ["--port", "9000"]), (None, ["--no-browser"])]
    assert _split_jupyter(["lab", "--help"]) == (["lab", "--help"], [])
    assert _split_jupyter(["ask", "--help"]) == (["ask", "--help"], [])
