"""lmms-eval itself, where it is installed: it finds the lab, asks the lab's tasks, and its table is that of `compare`."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from helpers.onevision import onevision_lab
from helpers.task_files import read, rows, write

import illava_lab as il
from illava_lab.__main__ import main
from illava_lab.lmms import TASKS
from illava_lab.lmms.requests import Answers
from illava_lab.measuring.cost import Cost
from illava_lab.measuring.task_names import EMBEDDED

there = importlib.util.find_spec("lmms_eval") is not None
needs_lmms_eval = pytest.mark.skipif(not there, reason="lmms-eval is not installed (docs/benchmarks.md says how)")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
FILES = {"frames": ((8, 9, 8), None), "image": ((1, 1, 1), (3, 1, 4))}


def files(folder: Path, lab: il.Lab) -> list[str]:
    """A file of each kind, the last of conversations; random weights answer two of three questions right."""
    out = []
    for kind, (counts, turns) in FILES.items():
        (folder / kind).mkdir()
        task = read(folder / kind, kind, counts, turns)
        task = replace(task, samples=task.samples.assign(answer="token50 " * 40))  # so that answers end by themselves
        table = rows(kind, counts, turns)
        for number, (row, said) in enumerate(zip(table, il.predict(lab, task), strict=True)):
            row["answer"] = said if number % 3 and said else "no"
        out.append(str(write(folder / kind, table)))
    return out


@needs_lmms_eval
def test_its_table_is_that_of_compare_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from illava_lab.lmms.evaluate import evaluate

    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))
    lab = onevision_lab()
    tasks = files(tmp_path, lab)
    asked = dict(strategy="illava", keep=0.5, batch_size=2)
    whole = evaluate(lab, tasks, **asked)
    assert (whole["status"] == "ok").all(), whole["status"].tolist()
    columns = [
        "strategy",
        "keep",
        "seed",
        "samples",
        "accuracy",
        "difference",
        "difference_low",
        "difference_high",
        *Cost.__annotations__,
    ]
    for task in tasks:
        compared = il.compare(lab, **asked, task=task, timing=False, progress=False)
        own = whole[whole["task"] == task].reset_index(drop=True)
        pd.testing.assert_frame_equal(own[columns], compared[columns], check_exact=True, check_dtype=False)
        assert own["value"].tolist() == compared["accuracy"].tolist() and 0 < own["accuracy"][0] < 1

    add, left = Answers.add, [0]

    def interrupted(self: Answers, *given: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        add(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Answers, "add", interrupted)
    stops = 0
    while True:
        left[0] = 5
        try:
            again = evaluate(lab, tasks, **asked, out=tmp_path / "out")
            break
        except KeyboardInterrupt:
            stops += 1
    answered = 5 * stops + 5 - left[0]
    assert stops >= 3 and answered == 2 * sum(
        2 * len(counts) if not turns else len(turns) for counts, turns in FILES.values()
    )
    pd.testing.assert_frame_equal(again.drop(columns="seconds"), whole.drop(columns="seconds"))
    stored = pd.read_csv(tmp_path / "out" / "table.csv")
    assert stored["accuracy"].tolist() == whole["accuracy"].tolist()


@needs_lmms_eval
def test_it_finds_the_lab_and_makes_one_of_model_args() -> None:
    from lmms_eval.models import get_model

    made = get_model("illava_lab").create_from_arg_string
    given = {"batch_size": "2", "max_batch_size": None, "device": "cpu"}  # of its other options
    asker = made("pretrained=embedded,strategy=illava,keep=0.25,frames=4", given).asker
    assert (asker.lab.source, asker.strategy.label, str(asker.budget)) == ("embedded", "illava", "keep 0.25")
    assert (asker.batch_size, asker.frames, asker.graphs) == (2, 4, False)
    with pytest.raises(il.LabError, match="keep 0.5 cannot be met, because no strategy is named"):
        made("keep=0.5", given)


# --------------------------------------------------------------------------------------------- without it
@pytest.mark.skipif(there, reason="lmms-eval is installed")
def test_without_lmms_eval_the_command_says_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--tasks", "test"]) == 2
    err = capsys.readouterr().err
    assert "this needs lmms-eval: pip install 'illava-lab[lmms]', then pip install --no-deps lmms-eval==" in err
    assert err.count("\n") == 1


def test_every_task_of_the_lab_has_a_file_that_names_where_its_questions_are() -> None:
    from illava_lab.lmms.tasks import asked

    names = {name.replace("-", "_") for name in EMBEDDED}
    assert {path.stem for path in TASKS.glob("*.yaml")} == {f"illava_lab_{name}" for name in names}
    for name in names:
        lines = (TASKS / f"illava_lab_{name}.yaml").read_text().splitlines()
        template = "_conversation_yaml" if name.startswith("conversation") else "_one_question_yaml"
        assert lines == [f"task: illava_lab_{name}", f"include: {template}", f"dataset_kwargs: !function asked.{name}"]
        assert getattr(asked, name)["data_files"]["test"].endswith(f"{name.replace('_', '-')}.parquet")
    functions = {
        line.split("asked.")[1]
        for path in TASKS.glob("_*")
        if path.is_file()
        for line in path.read_text().splitlines()
        if "!function" in line and "asked." in line
    }
    assert functions and all(callable(getattr(asked, name)) for name in functions)
