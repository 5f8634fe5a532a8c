"""The comparison table: what is in it, what is refused, and going on after a stop."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import illava_lab as il
from illava_lab.measuring.compare import AFTER_CATEGORIES, BEFORE_CATEGORIES, compare
from illava_lab.measuring.rows import wanted
from illava_lab.measuring.summary import summary, summary_by_category
from illava_lab.measuring.task_files import load_task

module = importlib.import_module("illava_lab.measuring.compare")  # `illava_lab.measuring.compare` is the function


@pytest.fixture(scope="module")
def lab() -> Iterator[il.Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores, waiting for a second thread costs more than it brings
    yield il.load()
    torch.set_num_threads(threads)


@il.register
class LargestNorm(il.Scorer):
    """A user's strategy, in fewer than ten lines."""

    name = "test-largest-norm"

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        return tokens.hidden.norm(dim=-1)


class Fails(il.Scorer):
    name = "test-fails"

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        raise RuntimeError("on\npurpose")


def run(lab: il.Lab, strategies: list, keep: list[float] | None, **options: object) -> pd.DataFrame:
    return compare(lab, strategies, keep, **{"limit": 16, "timing": False, "progress": False, **options})


def test_the_table_has_every_strategy_and_the_agreed_columns(lab: il.Lab) -> None:
    strategies = ["illava", "test-largest-norm", Fails, il.get_strategy("illava")(ramp="uniform"), "none"]
    table = run(lab, strategies, [0.5, 1.0])
    task = load_task("test").limited(16)

    categories = [f"accuracy_{category}" for category in task.categories]
    assert list(table.columns) == [*BEFORE_CATEGORIES, *categories, *AFTER_CATEGORIES]
    names = ["illava", "test-largest-norm", "test-fails", "illava(ramp='uniform')"]
    assert list(zip(table["strategy"], table["keep"], strict=True)) == [
        ("none", 1.0),
        *((n, k) for n in names for k in (0.5, 1.0)),
    ]
    assert (table["samples"] == len(task)).all() and (table["seed"] == 0).all()

    bare = table.iloc[0]
    assert (bare["difference"], bare["difference_low"], bare["difference_high"]) == (0, 0, 0)
    assert table[["prefill_ratio", "decode_ratio"]].isna().all(axis=None)  # not asked for here
    # Keeping everything is the bare model, whatever the strategy.
    same = table[(table["keep"] == 1) & (table["status"] == "ok")]
    assert (same["accuracy"] == bare["accuracy"]).all() and (same["prefill_flops"] == bare["prefill_flops"]).all()

    reduced = table[(table["keep"] == 0.5) & (table["status"] == "ok")]
    assert len(reduced) == 3
    assert bare["kept"] == 1 and (reduced["kept"] == 0.5).all()
    for column in ("tokens", "tokens_encoder", "tokens_llm", "prefill_flops", "cache_bytes"):
        assert (reduced[column] < bare[column]).all(), column
    assert np.allclose(reduced["difference"], reduced["accuracy"] - bare["accuracy"])

    failed = table[(table["strategy"] == "test-fails") & (table["keep"] == 0.5)].iloc[0]
    assert failed["status"] == "RuntimeError: on purpose"
    assert failed[["accuracy", "difference", "prefill_flops", "cache_bytes"]].isna().all()

    text = summary(table)
    assert max(map(len, text.splitlines())) <= 120
    assert "test-fails at keep 0.5: RuntimeError: on purpose" in text
    assert f"{reduced.iloc[0]['prefill_flops'] / bare['prefill_flops']:.2f}" in text
    heads, first, *_ = summary_by_category(table).splitlines()
    assert heads.split() == ["strategy", "budget", "all", *task.categories]
    shares = [f"{bare[column] * 100:.1f}" for column in ("accuracy", *categories)]
    assert first.split() == ["none", *shares]


def leaves(where: str) -> il.Strategy:
    """A strategy that calls sys.exit in one of its methods, or where a property is read."""

    def leave(self: il.Strategy, *_: object) -> None:
        sys.exit(0)

    own = {"name": f"test-leaves-{where.replace('_', '-')}", "score": LargestNorm.score}
    own |= {"looks": lambda self, depth: [0]} if where == "note" else {}
    own |= {"own_count": True} if where == "count" else {}
    return type(f"Leaves{where}", (il.Scorer,), own | {where: property(leave) if where == "own_count" else leave})()


def test_no_strategy_ends_a_comparison_by_sys_exit(lab: il.Lab) -> None:
    places = ["score", "note", "count", "looks", "layers", "counts", "own_count"]
    table = run(lab, [*map(leaves, places), "stride"], [0.5], limit=4)
    assert list(table["strategy"][1:-1]) == [f"test-leaves-{where.replace('_', '-')}" for where in places]
    for row in table[1:-1].itertuples():
        assert row.strategy in row.status and "SystemExit: 0" in row.status
    assert set(table.iloc[[0, -1]]["status"]) == {"ok"}


def test_times_are_ratios_with_their_spread(lab: il.Lab) -> None:
    table = run(lab, ["illava", Fails], [0.5], limit=4, batch_size=2, timing=True)
    bare, reduced, failed = (row for _, row in table.iterrows())
    for kind in ("prefill", "decode"):
        assert bare[f"{kind}_ratio"] == bare[f"{kind}_ratio_low"] == bare[f"{kind}_ratio_high"] == 1
        assert 0 < reduced[f"{kind}_ratio_low"] <= reduced[f"{kind}_ratio"] <= reduced[f"{kind}_ratio_high"]
        assert np.isnan(failed[f"{kind}_ratio"])


def test_a_bare_model_that_fails_is_no_comparison(lab: il.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "answers", lambda *a, **kw: 1 / 0)
    with pytest.raises(il.LabError, match="bare model fails on this task: ZeroDivisionError"):
        run(lab, ["illava"], [0.5])


def test_a_strategy_of_ten_lines_runs_in_both_stages(lab: il.Lab) -> None:
    task = load_task("test").limited(8)
    sample = task.samples.iloc[0]
    answer = lab.ask(task.image(sample["image_id"]), sample["question"], "test-largest-norm", keep=0.5)
    assert {step.stage for step in answer.trace.steps} == {"encoder", "llm"}


def test_accuracy_is_that_of_the_answers(lab: il.Lab, tmp_path: Path) -> None:
    table = run(lab, ["random"], [0.3], out=tmp_path / "out", batch_size=5)
    task = load_task("test").limited(16)
    entries = [json.loads(line) for line in (tmp_path / "out" / "run.jsonl").read_text().splitlines()][1:]
    for (_, row), entry in zip(table.iterrows(), entries, strict=True):
        right = [a.strip().lower() == b.lower() for a, b in zip(entry["answers"], task.samples["answer"], strict=True)]
        assert row["accuracy"] == np.mean(right)
        for category in task.categories:
            own = [r for r, c in zip(right, task.samples["category"], strict=True) if c == category]
            assert row[f"accuracy_{category}"] == pytest.approx(np.mean(own))
    stored = pd.read_csv(tmp_path / "out" / "table.csv")
    pd.testing.assert_frame_equal(stored, table, check_dtype=False)


def test_the_seed_reaches_strategies_that_are_named(lab: il.Lab) -> None:
    named = wanted(["none", "random", "illava"], *[None] * 4, default=[0.5], seed=7).strategies
    assert {name: getattr(strategy, "seed", None) for name, strategy in named.items()} == {"random": 7, "illava": None}
    randoms = [il.get_strategy("random")(seed=s) for s in (0, 1)]
    named = wanted(randoms, *[None] * 4, default=[0.5], seed=7).strategies
    assert {name: strategy.seed for name, strategy in named.items()} == {"random": 0, "random(seed=1)": 1}


@pytest.mark.slow
def test_budgets_by_flops_are_equal_and_those_out_of_reach_say_so(lab: il.Lab) -> None:
    table = run(lab, ["illava", "tome", "fastv"], [0.5], flops=[0.5])
    assert list(table["keep"].fillna(0)) == [1.0, *[0.5, 0] * 3]
    bare, rows = table.iloc[0], table[table["flops"] == 0.5]
    assert np.allclose(rows["prefill_flops"].iloc[:2] / bare["prefill_flops"], 0.5, rtol=0.01)
    assert rows["status"].iloc[2].startswith("fastv cannot reach 0.5 of this model's prefill FLOPs: with 1 of 196")
    assert "fastv at FLOPs 0.5: fastv cannot reach" in summary(table)
    assert run(lab, ["illava"], None, flops=0.7)["flops"].tolist()[1:] == [0.7]  # no `keep` beside it by default


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": ["ilava"]}, "unknown strategy 'ilava'; did you mean illava"),
        ({"strategy": []}, "strategy must hold at least one"),
        ({"strategy": [3]}, "must be a name, a Strategy class or an instance"),
        ({"strategy": ["illava", "illava"]}, "strategy holds one twice"),
        ({"keep": []}, "keep must hold at least one"),
        ({"keep": [0.5, 0.0]}, r"\(0, 1\], got 0.0"),
        ({"keep": 1.5}, r"\(0, 1\], got 1.5"),
        ({"keep": ["half"]}, r"\(0, 1\], got 'half'"),
        ({"limit": 0}, "limit must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"seed": -1}, "seed must be"),
        ({"task": "nothing.parquet"}, "no file 'nothing.parquet'"),
        ({"out": Path(__file__) / "below_a_file"}, "out: cannot write"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    lab: il.Lab, monkeypatch: pytest.MonkeyPatch, change: dict, message: str
) -> None:
    monkeypatch.setattr(module, "_measure", lambda *a: pytest.fail("work was begun"))
    monkeypatch.setattr(module, "_speeds", lambda *a: pytest.fail("work was begun"))
    with pytest.raises(il.LabError, match=message):
        compare(lab, **{"strategy": ["illava"], "keep": [0.5], "limit": 8, "progress": False, **change})


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_repeats_nothing(
    lab: il.Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured, original = tmp_path / "out", [], module._measure

    def measure(lab: il.Lab, task: object, row: object, *rest: object) -> tuple:
        if row.label == "fastv keep 0.5" and "fastv keep 0.5" not in measured:
            measured.append(row.label)
            raise KeyboardInterrupt
        measured.append(row.label)
        return original(lab, task, row, *rest)

    monkeypatch.setattr(module, "_measure", measure)
    wanted = (lab, ["random", "fastv", Fails], [0.5])
    with pytest.raises(KeyboardInterrupt):
        run(*wanted, out=out)
    assert list(pd.read_csv(out / "table.csv")["strategy"]) == ["none", "random"]
    with (out / "run.jsonl").open("a") as log:
        log.write('{"label": "fastv keep 0.5", "row": {"accur')  # a kill in the middle of a write

    first = run(*wanted, out=out)
    assert measured == ["none keep 1", "random keep 0.5", "fastv keep 0.5", "fastv keep 0.5", "test-fails keep 0.5"]
    # What failed is tried again, the rest is not.
    again = run(*wanted, out=out)
    assert measured[5:] == ["test-fails keep 0.5"]
    pd.testing.assert_frame_equal(again, first)
    pd.testing.assert_frame_equal(run(*wanted), first)
    # More rows in the same folder cost only the new ones.
    assert len(run(lab, ["random"], [0.5, 0.3], out=out)) == 3
    assert measured[-1] == "random keep 0.3"


@pytest.mark.slow
def test_other_settings_are_refused_and_edited_strategies_measured_again(
    lab: il.Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(lab, ["random"], [0.5], out=out)
    before = (out / "run.jsonl").read_text()
    changes = ({"limit": 24}, "limit=16"), ({"seed": 1}, "seed=0"), ({"task": "validation"}, "task='test'")
    for change, named in changes:
        with pytest.raises(il.LabError, match=f"holds a comparison with {named}, .* name another folder"):
            run(lab, ["random"], [0.5], out=out, **change)
    assert (out / "run.jsonl").read_text() == before

    monkeypatch.setattr(il.get_strategy("random"), "score", lambda self, tokens: tokens.hidden.norm(dim=-1))
    seen, original = [], module._measure
    monkeypatch.setattr(module, "_measure", lambda *given: seen.append(given[2].label) or original(*given))
    run(lab, ["random"], [0.5], out=out)
    assert seen == ["random keep 0.5"]

    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "table.csv").write_text("mine")
    with pytest.raises(il.LabError, match="no run.jsonl"):
        run(lab, ["random"], [0.5], out=tmp_path / "foreign")
    assert (tmp_path / "foreign" / "table.csv").read_text() == "mine"
