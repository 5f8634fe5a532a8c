"""`illava-lab check` and lists of strategies name what is broken, in whatever way it is; nothing ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import illava_lab as il
from illava_lab.__main__ import main
from illava_lab.method.ask import ask
from illava_lab.method.names import own_names
from illava_lab.testing import example_tokens

REPOSITORY = Path(__file__).resolve().parents[2]
HEAD = """
import sys
import illava_lab as il
class Mute(Exception):
    def __str__(self): raise RuntimeError("no text")
    __repr__ = __str__
class Other(BaseException):
    pass
class Worse(BaseException):
    def __str__(self): raise Worse
"""
SCORES = {
    "sys.exit(0)": "SystemExit: 0",
    "sys.exit()": "SystemExit",
    "raise SystemExit('bye')": "SystemExit: bye",
    "raise Other('out')": "Other: out",
    "raise GeneratorExit": "GeneratorExit",
    "raise Mute": "Mute: (what it says cannot be read: RuntimeError)",
    "raise Worse": "Worse: (what it says cannot be read: Worse)",
    "raise ValueError('\\x1b[2J\\x1b]0;title\\x07')": r"ValueError: \x1b[2J\x1b]0;title\x07",
    "raise ValueError('\\ud800')": r"ValueError: \ud800",
    "return self.score(tokens)": "RecursionError",
    "raise MemoryError": "MemoryError",
    "raise StopIteration": "StopIteration",
    "assert False": "AssertionError",
}


def strategy(score: str, more: str = "", name: str = "theirs") -> str:
    return f"""{HEAD}
@il.register
class Theirs(il.Scorer):
    \"\"\"Keeps something.\"\"\"
    name = {name!r}
    {more}
    def score(self, tokens):
        {score}
"""


@pytest.mark.parametrize("score", list(SCORES))
def test_a_score_that_ends_in_any_way_is_a_broken_promise(
    score: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(strategy(score))
    assert main(["check", str(file)]) == 1
    out = capsys.readouterr().out
    assert "BROKEN  maps_every_case: map fails with " + SCORES[score] in out
    assert all(line.isprintable() for line in out.splitlines())


@pytest.mark.parametrize(
    "more",
    [
        "limit: int = 3\n    def __repr__(self): sys.exit(0)",
        "kind = property(lambda self: 'prune' if sys._getframe(1).f_code.co_name == 'declared' else sys.exit(0))",
        "smallest_keep = property(lambda self: sys.exit(0))",
        "def reachable_keep(self, keep, grid): raise Worse",
        "stages = property(lambda self: ('llm',) if sys._getframe(1).f_code.co_name == 'declared' else sys.exit())",
    ],
)
def test_what_else_is_looked_at_is_a_broken_promise_too(
    more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(strategy("return tokens.hidden.norm(dim=-1)", more))
    assert main(["check", str(file)]) == 1
    assert "BROKEN" in capsys.readouterr().out


@pytest.mark.parametrize("more", ["def __post_init__(self): sys.exit(0)", "def __post_init__(self): raise Worse"])
def test_a_class_that_cannot_be_made_is_refused_by_name(
    more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.py"
    file.write_text(strategy("return tokens.hidden.norm(dim=-1)", more))
    assert main(["check", str(file)]) == 2
    assert "cannot be made: " in capsys.readouterr().err


def test_a_strategy_that_calls_exit_does_not_end_what_asks_it() -> None:
    class Leaves(il.Scorer):
        name = "leaves"

        def score(self, tokens):
            sys.exit(0)

    with pytest.raises(il.LabError, match="strategy 'leaves' at llm layer 1 fails with SystemExit: 0"):
        ask(Leaves(), example_tokens("llm"), 9)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_a_check_that_hangs(tmp_path: Path) -> None:
    file, started = tmp_path / "theirs.py", tmp_path / "started"
    file.write_text(strategy(f"open({str(started)!r}, 'w').close()\n        while True: pass"))
    command = [sys.executable, "-m", "illava_lab", "check", str(file)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not started.exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "\nillava-lab: interrupted\n")


# ---------------------------------------------------------------------------------------------- plug-ins
MODULES = {
    "good": strategy("return tokens.hidden.norm(dim=-1)", name="good-one"),
    "needs": strategy("return tokens.hidden.norm(dim=-1)", "limit: int", name="needs-one"),
    "unmade": strategy("return tokens.hidden.norm(dim=-1)", "def __post_init__(self): sys.exit(0)", name="unmade"),
    "paper": strategy(
        "return tokens.hidden.norm(dim=-1)", "paper = property(lambda self: sys.exit(0))", name="papered"
    ),
    "mute": HEAD + "raise Mute",
    "worse": HEAD + "raise Worse",
    "leaves": "import sys; sys.exit(0)",
    "shouts": "raise ValueError('\\x1b[2J')",
    "odd_name": strategy("return 0", name="\x1b[31mred"),
    "blank": strategy("return 0", name=" "),
    "number": HEAD + "class N(str):\n    __hash__ = None\n@il.register\nclass T(il.Scorer):\n    name = N('n')\n",
    "deep": "def f(): f()\nf()",
    "asks": "import illava_lab as il\nil.strategies(); il.broken_plugins()\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed package, most modules of which are in some trouble."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "troubled").mkdir()
    (folder / "troubled" / "__init__.py").write_text("")
    for name, text in MODULES.items():
        (folder / "troubled" / f"{name}.py").write_text(text)
    described = {
        "troubled": b"[illava_lab.strategies]\nall = troubled\nnothing =\nodd = a b c\n",
    }
    for name, entries in described.items():
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_bytes(entries)
    return folder


def lab(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(site)])}
    return subprocess.run(
        [sys.executable, "-m", "illava_lab", *words], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


def test_plugins_in_any_trouble_do_not_keep_the_lab_from_starting(site: Path, tmp_path: Path) -> None:
    assert len(entry_points(group="illava_lab.strategies")) == 1  # of this process
    listed = lab(site, tmp_path, "strategies")
    assert listed.returncode == 0
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert {"illava", "good-one", "needs-one", "papered", "unmade"} <= set(names)
    for module in ("mute", "worse", "leaves", "shouts", "odd_name", "blank", "number", "deep"):
        assert f"the plug-in troubled.{module} could not be loaded" in listed.stderr, module
    assert "the plug-in nothing could not be loaded" in listed.stderr
    assert all(line.isprintable() for line in (listed.stdout + listed.stderr).splitlines())


@pytest.mark.slow
def test_everything_is_checked_but_what_needs_settings(site: Path, tmp_path: Path) -> None:
    done = lab(site, tmp_path, "check")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert {*own_names(), "good-one"} <= set(said), said
    assert "needs-one is not checked: " in done.stderr and "unmade is not checked: " in done.stderr
