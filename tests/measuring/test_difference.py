"""il.difference: the paired interval between any two rows, from the answers that the table carries."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import illava_lab as il
from illava_lab.measuring.difference import keep_answers

pytestmark = pytest.mark.slow  # its table takes a comparison on the embedded model


class Fails(il.Scorer):
    """Fails."""

    name = "difference-fails"

    def score(self, tokens: il.Tokens):
        raise RuntimeError("no")


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(scope="module")
def table(lab: il.Lab, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    out = tmp_path_factory.mktemp("compare") / "out"
    return il.compare(lab, ["random", "stride", Fails], [0.3, 0.6], limit=40, timing=False, progress=False, out=out)


def test_it_is_the_paired_difference_of_the_two_rows_answers(lab: il.Lab, table: pd.DataFrame) -> None:
    task = il.load_task().limited(40)
    right = {}
    for name in ("random", "stride"):
        strategy = il.get_strategy(name)()
        with il.attach(lab.model, strategy, il.Schedule.for_budget(strategy, lab.model, keep=0.3)):
            right[name] = il.correct(il.predict(lab, task), task)
    want = il.paired_difference(right["random"], right["stride"], task.samples["image_id"])
    assert il.difference(table, "random keep 0.3", "stride keep 0.3") == want
    assert il.difference(table, 1, 3) == want
    back = il.difference(table, "stride keep 0.3", "random keep 0.3")
    assert back.value == -want.value


def test_against_the_bare_model_it_is_what_the_table_says(table: pd.DataFrame) -> None:
    for index, row in table[table["status"] == "ok"].iterrows():
        assert il.difference(table, index, "none") == (row["difference"], row["difference_low"], row["difference_high"])


def test_a_part_a_copy_and_a_sorted_table_know_the_answers(table: pd.DataFrame) -> None:
    want = il.difference(table, "random keep 0.6", "none")
    part = table[table["strategy"] != "stride"].sort_values("keep").reset_index(drop=True)
    for other in (part, copy.deepcopy(table), pd.concat([table.head(3), table.tail(2)])):
        assert il.difference(other, "random keep 0.6", "none") == want


def test_a_resumed_table_knows_them_without_running(lab: il.Lab, tmp_path: Path, monkeypatch) -> None:
    asked = dict(keep=0.5, limit=12, timing=False, progress=False, out=tmp_path / "out")
    first = il.compare(lab, ["random"], **asked)
    monkeypatch.setattr(type(lab.model), "generate", lambda *args, **kwargs: pytest.fail("it ran"))
    again = il.compare(lab, ["random"], **asked)
    assert il.difference(again, "random", "none") == il.difference(first, "random", "none")


@pytest.mark.parametrize(
    ("a", "says"),
    [
        ("random", "a must be one row of the table, 'random' is 2 rows"),
        ("randm keep 0.3", "is no row; there are none keep 1, random keep 0.3"),
        (99, "99 is no row"),
        ("difference-fails keep 0.3", "has no answers, it failed: RuntimeError: no"),
    ],
)
def test_what_is_no_row_is_refused(table: pd.DataFrame, a: int | str, says: str) -> None:
    with pytest.raises(il.LabError, match=says):
        il.difference(table, a, "none")


def test_a_table_from_a_file_is_refused(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(il.LabError, match="table holds no answers"):
        il.difference(pd.read_csv(tmp_path / "table.csv"), 0, 1)


def test_what_hangs_on_a_table_can_be_stored_with_it(table: pd.DataFrame, tmp_path: Path) -> None:
    task = il.load_task().limited(4)
    small = pd.DataFrame({"strategy": ["none"], "keep": [1.0], "flops": [np.nan], "status": ["ok"]})
    keep_answers(small, {"none keep 1": np.ones(len(task), dtype=bool)}, task, seed=0)
    small.to_parquet(tmp_path / "table.parquet")
    assert il.difference(pd.read_parquet(tmp_path / "table.parquet"), 0, 0).value == 0
