"""The command line as people meet it: what it prints, what it leaves behind, how it ends."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from helpers.onevision import save_onevision
from helpers.task_files import rows, write

import illava_lab as il
from illava_lab.__main__ import _split_jupyter, main
from illava_lab.measuring.task_files import load_task
from illava_lab.measuring.task_names import EMBEDDED, ONE_PICTURE, OTHERS
from illava_lab.method import names, registry
from illava_lab.paths import EMBEDDED_MODELS
from illava_lab.schedules.presets import PRESETS

COMMAND = [sys.executable, "-m", "illava_lab"]
# On busy cores, waiting for a second thread costs more than it brings.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(folder: Path, *words: object, env: dict[str, str] = ENVIRONMENT) -> subprocess.Popen:
    # Tests that a shell runs in the background are born deaf to Ctrl-C, and so would be what they start.
    deaf = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [*COMMAND, *map(str, words)], cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
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
@pytest.mark.slow
def test_compare_prints_and_writes(tmp_path: Path) -> None:
    words = "compare --strategies illava,random --keep 0.5 --limit 16 --batch-size 4 --out results/mine"
    code, out, err = finish(start(tmp_path, *words.split()))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("model 'embedded', task 'test': ")
    assert [line.split()[0] for line in lines[2:5]] == ["none", "illava", "random"]
    assert max(map(len, lines)) <= 120
    folder = tmp_path / "results" / "mine"
    assert sorted(path.name for path in folder.iterdir()) == ["run.jsonl", "table.csv", "tradeoff.html", "tradeoff.png"]
    assert list(pd.read_csv(folder / "table.csv")["strategy"]) == ["none", "illava", "random"]


@pytest.mark.parametrize(
    ("kind", "counts", "turns", "size"),
    [
        ("images", (2, 3), None, "4 questions about 2 sets of images"),
        ("frames", (8, 9), None, "4 questions about 2 videos"),
        ("image", (1, 1), (2, 1), "3 questions in conversations about 2 images"),
    ],
)
def test_compare_takes_every_kind_of_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, counts: tuple[int, ...], turns: Any, size: str
) -> None:
    model, task = save_onevision(tmp_path / "model"), write(tmp_path, rows(kind, counts, turns))
    words = f"compare --strategies illava --keep 0.5 --no-timing --task {task} --model {model} --out {tmp_path / 'out'}"
    assert main(words.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"model {str(model)!r}, task {str(task)!r}: {size}"
    assert [line.split()[0] for line in lines[2:4]] == ["none", "illava"]


def test_help_names_the_embedded_tasks_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    said = re.sub(r"\s+", "", capsys.readouterr().out)
    for name in (*ONE_PICTURE, *OTHERS, *EMBEDDED_MODELS):
        assert name in said
    assert set(EMBEDDED) == {*ONE_PICTURE, *OTHERS, *(f"{name}-validation" for name in OTHERS)}


@pytest.mark.slow
def test_bench_prints_and_writes(tmp_path: Path) -> None:
    words = "bench --strategies illava --keep 0.5 --presets fastv --batch-sizes 2 --rounds 1 --new-tokens 1 --out fast"
    words += " --answers 1,2 --largest-batch 4"
    code, out, err = finish(start(tmp_path, *words.split()))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("Lab('embedded'") and max(map(len, lines)) <= 120
    assert [line.split()[0] for line in lines[4:8]] == ["bare", "none", "illava", "fastv"]
    assert sorted(path.name for path in (tmp_path / "fast").iterdir()) == ["bench.json", "run.jsonl", "table.csv"]
    assert "--presets fastv" in json.loads((tmp_path / "fast" / "bench.json").read_text())["about"]["command"]


@pytest.mark.slow
def test_compare_without_out_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "--strategies", "none", "--limit", "8", "--no-timing"]) == 0
    assert "none" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_interrupted_runs_go_on(tmp_path: Path) -> None:
    """Killed ones do too: see `test_sweeps.py`."""
    words = ["compare", "--strategies", "random,fastv,tome,illava", "--limit", "4", "--no-timing", "--out", "o"]
    log = tmp_path / "o" / "run.jsonl"
    process = start(tmp_path, *words)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= 3:
            process.send_signal(signal.SIGINT)
            break
        time.sleep(0.02)
    code, out, err = finish(process)
    assert code == 130 and out == ""
    assert "interrupted; finished rows are kept" in err and "Traceback" not in err
    after_interrupt = log.read_text().splitlines()
    assert 3 <= len(after_interrupt) < 14

    code, out, err = finish(start(tmp_path, *words))
    assert (code, err) == (0, "")
    finished = log.read_text().splitlines()
    # A measured row keeps its line to the last digit: nothing was done twice.
    assert finished[: len(after_interrupt)] == after_interrupt
    labels = [json.loads(line)["label"] for line in finished[1:]]
    assert len(labels) == len(set(labels)) == 13
    assert list(pd.read_csv(tmp_path / "o" / "table.csv")["status"]) == ["ok"] * 13


INTERRUPT = """
import os, signal, sys
module = sys.argv.pop(1)
class Interrupt:
    def find_spec(self, name, *_):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
from illava_lab.__main__ import main
sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    "module", ["illava_lab.commands", "numpy", "torch.nn", "transformers", "illava_lab.strategies"]
)
def test_ctrl_c_while_modules_are_loaded_is_one_line(picture: Path, tmp_path: Path, module: str) -> None:
    words = [module, "ask", picture, "What is the word?", "--strategy", "illava"]
    done = subprocess.run([sys.executable, "-c", INTERRUPT, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nillava-lab: interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("way", ["module", "script"])
@pytest.mark.parametrize("module", ["lazy_loader", "illava_lab.__main__", "argparse", "illava_lab.arguments"])
def test_ctrl_c_before_anything_is_loaded_is_one_line(tmp_path: Path, module: str, way: str) -> None:
    """From the first module of the lab on; what comes before is Python's own start."""
    planted = f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *_):
        if name == {module!r} and "illava_lab" in sys.modules:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.modules.pop("argparse", None)
sys.meta_path.insert(0, Interrupt())
"""
    (tmp_path / "sitecustomize.py").write_text(planted)
    script = tmp_path / "illava-lab"
    script.write_text("import sys\nfrom illava_lab.__main__ import main\nsys.exit(main())\n")
    words = ["-m", "illava_lab"] if way == "module" else [script]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(il.__file__).parents[1])])}
    command = [sys.executable, *map(str, words), "check", "illava"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nillava-lab: interrupted\n")


def test_others_who_import_the_lab_keep_their_ctrl_c() -> None:
    code = "import signal, illava_lab; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.slow
def test_ask_answers_and_counts_tokens(picture: Path, tmp_path: Path) -> None:
    sample = load_task("test").samples.iloc[0]
    words = ("ask", picture, sample["question"], "--strategy", "illava", "--verbose")
    code, out, err = finish(start(tmp_path, *words))
    assert (code, err) == (0, "")
    answer = il.load().ask(picture, sample["question"], "illava")
    text, ran, counts, *steps = out.splitlines()
    assert text == answer.text
    assert ran == "illava, keep 0.5 (the default)"
    encoder, llm = answer.trace.steps[-2].after, answer.trace.steps[-1].after
    patches = answer.trace.steps[0].before
    assert counts.startswith(f"visual tokens: encoder {patches} -> {encoder}, LLM {encoder} -> {llm}; prefill ")
    assert patches > encoder > llm
    assert len(steps) == len(answer.trace.steps)


# ---------------------------------------------------------------------------------------------- at once
HEAVY = ("torch", "transformers", "numpy", "pandas")
QUICK = [
    ("--help",),
    *(
        (command, "--help")
        for command in ("lab", "ask", "compare", "bench", "check", "strategies", "presets", "doctor", "eval")
    ),
    ("presets",),
    ("compere",),
    ("compare", "--strategies", "ilava"),
    ("bench", "--presets", "fasttv"),
    ("check", "ilava"),
    ("check", "nowhere.py"),
    ("ask", "nowhere.png", "What?", "--strategy", "tome", "--preset", "tome-16"),
    ("compare", "--keep", "1.5"),
    ("compare", "--task", "nowhere.parquet"),
    ("compare", "--model", "embedded:nowhere"),
    ("compare", "--model", "no/such/folder"),
    ("ask", __file__, "What?", "--strategy", "tome", "--keep", "0.5", "--flops", "0.5"),
    ("ask", __file__, "What?", "--keep", "0.5"),
    ("ask", __file__, "What?", "--strategy", "tome", "--preset", "fastv"),
    ("ask", __file__, "What?", "--strategy", "tome", "--schedule", '{"llm": {"2": 1.5}}'),
]


@pytest.mark.parametrize("words", QUICK, ids=" ".join)
def test_help_and_mistakes_load_nothing_heavy(tmp_path: Path, words: tuple[str, ...]) -> None:
    code = (
        "import sys; sys.argv[0] = 'illava-lab'\n"
        "from illava_lab.__main__ import main\n"
        "try: status = main()\n"
        "except SystemExit as end: status = end.code\n"
        f"print(status, *set({HEAVY}) & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    right = "0" if {"--help", "presets"} & set(words) else "2"
    assert done.stdout.splitlines()[-1:] == [right], done.stderr


@pytest.mark.parametrize("command", ["ask", "compare", "bench"])
def test_every_command_takes_the_words_of_the_python_verbs_in_their_order(command: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = re.findall(r"^  --(strategy|keep|flops|preset|schedule)\b", capsys.readouterr().out, re.M)
    verb = {"ask": il.Lab.ask, "compare": il.compare, "bench": il.bench}[command]
    words = [name for name in inspect.signature(verb).parameters if name in shown]
    assert shown == words and len(words) == 5


@pytest.mark.slow
def test_help_and_mistakes_take_no_longer_than_four_imports_of_numpy(tmp_path: Path) -> None:
    numpy = [sys.executable, "-c", "import numpy"]
    asked = [
        [*COMMAND, "ask", "--help"],
        [*COMMAND, "compare", "--strategies", "ilava"],
        [*COMMAND, "ask", "nowhere.png", "What?", "--preset", "fastv"],
    ]
    seconds: dict[int, list[float]] = {number: [] for number in range(len(asked) + 1)}
    for _ in range(7):
        for number, command in enumerate([numpy, *asked]):
            begin = time.perf_counter()
            subprocess.run(command, cwd=tmp_path, capture_output=True)
            seconds[number].append(time.perf_counter() - begin)
    limit, *medians = (statistics.median(times) for times in seconds.values())
    assert max(medians) <= 4 * limit, (limit, medians)


def test_a_wrong_name_gets_the_same_sentence_in_python_and_on_the_command_line(tmp_path: Path) -> None:
    code = "import illava_lab as il\ntry: il.get_strategy('ilava')\nexcept il.LabError as error: print(error)"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    code, out, err = finish(start(tmp_path, "compare", "--strategies", "ilava"))
    assert (code, out, err) == (2, "", f"illava-lab: error: {refused}")
    assert "did you mean illava" in err


def test_names_read_from_files_are_those_of_the_registry() -> None:
    own = [name for name, cls in il.strategies().items() if cls.__module__.startswith(f"{names.OWN}.")]
    assert list(names.own_names()) == own


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('@register\nclass A:\n    name = "b"\n@il.register\nclass C:\n    name: str = "a"', ("none", "a", "b")),
        ("def helper(): pass", ("none",)),
        ('@register\nclass A:\n    name = "a" + "b"', None),
        ("@register\nclass A(B):\n    pass", None),
        ('class A:\n    name = "a"\nregister(A)', None),
        ('from illava_lab.method import register as r\n@r\nclass A:\n    name = "a"', None),
        ('@register\nclass A:\n    name = "none"', None),
        ("class", None),
    ],
)
def test_files_that_do_not_tell_their_names_are_left_to_the_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: tuple[str, ...] | None
) -> None:
    (tmp_path / "none.py").write_text('@register\nclass Nothing:\n    name = "none"')
    (tmp_path / "other.py").write_text(text)
    monkeypatch.setattr(names, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    assert names.own_names.__wrapped__() == found


@pytest.mark.slow
def test_strategies_of_other_packages_are_known(tmp_path: Path) -> None:
    (tmp_path / "theirs-1.0.dist-info").mkdir()
    (tmp_path / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (tmp_path / "theirs-1.0.dist-info" / "entry_points.txt").write_text("[illava_lab.strategies]\na = theirs:Theirs\n")
    (tmp_path / "theirs.py").write_text(
        "import illava_lab as il\n"
        "class Theirs(il.Scorer):\n"
        "    name = 'from-elsewhere'\n"
        "    def score(self, tokens): return tokens.hidden.norm(dim=-1)\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**ENVIRONMENT, "PYTHONPATH": path}
    for name, message in {"from-elsewhere": "no image file at", "from-elsewher": "did you mean from-elsewhere"}.items():
        code, out, err = finish(start(tmp_path, "ask", "nowhere.png", "What?", "--strategy", name, env=env))
        assert (code, out) == (2, "") and message in err


# ---------------------------------------------------------------------------------------------- how threads wait
WATCH = """
import os, sys
class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            sys.meta_path.remove(self)
            print("torch finds", os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)  # all was said
sys.meta_path.insert(0, Watch())
from illava_lab.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "own", "found"),
    [
        (("strategies",), None, "passive"),
        (("strategies",), "active", "active"),
        (("bench", "--device", "nowhere"), None, "None"),
    ],
)
def test_threads_sleep_while_they_wait_unless_speed_is_measured_or_the_user_chose(
    tmp_path: Path, words: tuple[str, ...], own: str | None, found: str
) -> None:
    env = {name: value for name, value in ENVIRONMENT.items() if name != "OMP_WAIT_POLICY"}
    env |= {} if own is None else {"OMP_WAIT_POLICY": own}
    done = subprocess.run([sys.executable, "-c", WATCH, *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert f"torch finds {found}\n" in done.stdout, done.stderr


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
        (("compare", "--keep", "1.5"), "argument --keep: must be in (0, 1], got '1.5'"),
        (("compare", "--keep", "0.5,0.50"), "argument --keep: 0.5 is given twice"),
        (("compare", "--limit", "many"), "argument --limit: 'many' is no whole number"),
        (("compare", "--limit", "0"), "argument --limit: must be at least 1, got '0'"),
        (("compare", "--task", "tset"), "there is no file 'tset'"),
        (("compare", "--model", "embedded:one"), "there is no embedded model 'embedded:one'; there "),
        (("compare", "--strategies", ","), "must be a name, got ''"),
        (("compare", "--strategies", "tome,tome"), "'tome' is given twice"),
        (("compare", "--strategies", 'illava(score="lse")'), "unknown strategy 'illava(score=\"lse\")'"),
        (("compare", "--strategies", "none", "--keep", "0.5"), "--keep 0.5 needs a --strategy that reduces"),
        (("compare", "--batch-size", "0"), "argument --batch-size: must be at least 1"),
        (("compare", "--seed", "-1"), "argument --seed: must be at least 0"),
        (("compare", "--model", "no/such/folder"), "'no/such/folder' is neither a folder nor a hub id"),
        (("compare", "--model", ""), "'' is neither a folder nor a hub id"),
        (("compare", "--model", __file__), "is a file; give the folder of a checkpoint"),
        (("compare", "--model", "random:nothing"), "no configuration for 'random:nothing'; there are "),
        (("compare", "--dtype", "int8"), "argument --dtype: invalid choice: 'int8'"),
        (("compare", "--out", ""), "argument --out: must be a folder, got ''"),
        (("compare", "--out", __file__), "argument --out: must be a folder, but"),
        (("lab", ""), "argument FOLDER: must be a folder, got ''"),
        (("compare", "--schedule", "0.5"), "must be an object with encoder, llm, image"),
        (("compare", "--schedule", "{llm}"), "'{llm}' is no JSON"),
        (("compare", "--schedule", '{"LLM": {"2": 0.5}}'), "must be an object with encoder, llm, image"),
        (("compare", "--schedule", '{"llm": {"2": 0.5, "2": 0.3}}'), "'2' is given twice"),
        (("compare", "--schedule", '{"llm": {"two": 0.5}}'), "llm: layers are whole numbers, got 'two'"),
        (("compare", "--schedule", '{"llm": {"2": 1.5}}'), "llm layer 2 must be a fraction in (0, 1] or a count"),
        (("compare", "--schedule", '{"llm": 0.5}'), "llm must map layers to what they keep"),
        (("bench", "--strategies", "ilava"), "unknown strategy 'ilava'"),
        (("bench", "--presets", "fasttv"), "unknown preset 'fasttv'"),
        (("bench", "--batch-sizes", "1,x"), "argument --batch-sizes: 'x' is no whole number"),
        (("bench", "--image", "nowhere.png"), "no image file at 'nowhere.png'"),
        (("ask", "nowhere.png", "What?"), "no image file at 'nowhere.png'"),
        (("ask", __file__, "What?"), "is not a picture"),
        (("ask", "{picture}", " "), "question must be a sentence"),
        (("ask", "{picture}", "What?", "--keep", "0.5"), "--keep 0.5 needs a --strategy that reduces"),
        (("ask", "{picture}", "What?", "--strategy", "none", "--flops", "0.5"), "'none' keeps every token"),
        (("ask", "{picture}", "What?", "--schedule", '{"llm": {"2": 0.5}}'), "needs a --strategy that reduces"),
        (("ask", "{picture}", "What?", "--strategy", "tom"), "unknown strategy 'tom'; did you mean tome"),
        (("ask", "{picture}", "What?", "--strategy", "tome", "--keep", "1", "--flops", "1"), "got --keep and --flops"),
        (("ask", "{picture}", "What?", "--keep", "0.5", "--preset", "fastv"), "got --keep and --preset"),
        (("ask", "{picture}", "What?", "--strategy", "tome", "--preset", "fastv"), "runs fastv, not 'tome'"),
        (("ask", "{picture}", "What?", "--strategy", "tome,fastv"), "unknown strategy 'tome,fastv'"),
        (("check", "nowhere.py"), "there is no Python file 'nowhere.py'"),
        (("strategies", "more"), "unrecognized arguments: more"),
    ],
)
def test_mistakes_are_named(capsys: pytest.CaptureFixture[str], picture: Path, words: tuple, message: str) -> None:
    code, out, err = run(capsys, *(str(word).replace("{picture}", str(picture)) for word in words))
    assert (code, out) == (2, "")
    assert err.startswith("illava-lab: error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    "words",
    [
        ("{bad}",),
        ("strategies", "{bad}"),
        ("compare", "--{bad}"),
        ("compare", "--strategies", "{bad}"),
        ("compare", "--presets", "{bad}"),
        ("compare", "--keep", "{bad}"),
        ("compare", "--task", "{bad}"),
        ("compare", "--model", "{bad}"),
        ("compare", "--device", "{bad}"),
        ("compare", "--schedule", "{bad}"),
        ("ask", "{bad}", "What?"),
        ("check", "{bad}.py"),
    ],
)
def test_control_characters_never_reach_the_terminal(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, out, err = run(capsys, *(word.format(bad="\x1b]0;t\x07\n\x9b2J") for word in words))
    assert (code, out) == (2, "")
    assert err.endswith("\n") and err[:-1].isprintable() and "2J" in err


@pytest.mark.parametrize("command", ["ask", "compare", "bench"])
def test_every_verb_takes_the_same_words_in_the_same_order(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    options = [line.split()[0] for line in out.split("options:")[1].splitlines() if line.startswith("  --")]
    assert code == 0
    assert options[:5] == ["--strategy", "--keep", "--flops", "--preset", "--schedule"]
    assert "--strategies" in out and "--presets" in out


class _Recorded:
    """In the place of a lab and of the verbs: notes what they are called with."""

    def __init__(self) -> None:
        self.arguments: dict = {}

    def __call__(self, lab: object, strategy: object = None, keep: object = None, **others: object) -> None:
        self.arguments = {"strategy": strategy, "keep": keep, **others}
        raise il.LabError("far enough")


@pytest.mark.parametrize("command", ["compare", "bench"])
@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--strategy tome --keep 0.5", {"strategy": ["tome"], "keep": [0.5], "preset": None, "schedule": None}),
        ("--flops 0.5,0.3", {"strategy": "default", "keep": None, "flops": [0.5, 0.3]}),
        ("--preset fastv,tome-16", {"strategy": None, "preset": ["fastv", "tome-16"]}),
        ("--preset fastv --keep 0.5", {"strategy": "default", "preset": ["fastv"], "keep": [0.5]}),
        ("--strategies all", {"strategy": "all"}),
        ("--strategies none --keep 1", {"strategy": ["none"], "keep": [1.0]}),
        (
            '--strategies fastv --schedule [{"llm":{"2":0.5}},{"llm":{"2":9},"encoder":{}}]',
            {"schedule": [il.Schedule(llm={2: 0.5}), il.Schedule(llm={2: 9})]},
        ),
    ],
)
def test_tables_are_asked_for_in_the_words_of_python(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, words: str, wanted: dict
) -> None:
    called = _Recorded()
    monkeypatch.setattr("illava_lab.session.load.load", lambda *_, **__: SimpleNamespace(source="none at all"))
    monkeypatch.setattr(f"illava_lab.measuring.{command}.{command}", called)
    assert run(capsys, command, *words.split())[0] == 2
    default = {
        "compare": ["none", "random", "fastv", "tome", "illava"],
        "bench": ["fastv", "tome", "visionzip", "illava"],
    }
    replaced = {"default": default[command], "all": list(il.strategies())}
    for name, value in wanted.items():
        assert called.arguments[name] == (replaced[value] if isinstance(value, str) else value)


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "presets")
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert (code, err) == (0, "") and set(rows) == {"name", *PRESETS}
    assert "illava(score='lse')" in rows["illava-qwen2-vl"]
    assert "encoder 12-15: 0.84; LLM 6-8: 0.9" in rows["illava-qwen2-vl"]
    assert "encoder 0: 560, 1: 544, ..., 22: 208" in rows["tome-16"] and "2210.09461" in rows["tome-16"]


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
    assert "this model does not know 'xylophone'; it knows the shapes circle" in err


def test_lab_hands_options_to_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("illava_lab.course.jupyter.open_lab", lambda folder, extra: seen.append((folder, extra)) or 0)
    assert main(["lab"]) == main(["lab", "course", "--port", "9000"]) == main(["lab", "--no-browser"]) == 0
    assert seen == [(None, []), (Path("course"), ["--port", "9000"]), (None, ["--no-browser"])]
    assert _split_jupyter(["lab", "--help"]) == (["lab", "--help"], [])
    assert _split_jupyter(["ask", "--help"]) == (["ask", "--help"], [])
