"""bench: the table's structure, the limit it measures against, going on after a stop; times only for their shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import KINDS, Prompt, make_inputs, shared_llava
from helpers.checkpoints import scaled_down
from helpers.every import of_pictures
from helpers.qwen import QWENS
from PIL import Image

import illava_lab as il
from illava_lab.measuring import measure
from illava_lab.measuring.bench import bench, columns
from illava_lab.measuring.bench_case import Case
from illava_lab.measuring.bench_summary import summary
from illava_lab.measuring.limit import Limit
from illava_lab.models.families import describe

QUICK = {"rounds": 1, "new_tokens": 1, "answers": [1, 3], "progress": False}
KEPT_LISTS = [name for name in of_pictures() if name not in ("none", "downsample")]


class Fails(il.Scorer):
    name = "test-fails"

    def score(self, tokens: il.Tokens) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")


@pytest.fixture(scope="module")
def lab() -> Iterator[il.Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield il.load()
    torch.set_num_threads(threads)


PLACES = [("clip-llama", name) for name in KEPT_LISTS] + [(kind, "illava") for kind in KINDS[1:]]


@pytest.mark.parametrize(("kind", "name"), PLACES)
def test_the_limit_has_the_counts_of_the_strategy_at_every_layer(kind: str, name: str) -> None:
    model, strategy = shared_llava(kind), il.get_strategy(name)()
    inputs = make_inputs([Prompt(), Prompt(seed=1)], kind)
    schedule, limit, seen = il.Schedule.for_budget(strategy, model, keep=0.5), Limit(), []
    for which in (strategy, limit, limit):  # the second time from its list
        with il.attach(model, which, schedule) as trace:
            cache = measure.prefill(model, inputs).past_key_values
        steps = [(step.stage, step.layer, step.rows, step.before, step.after) for step in trace.steps]
        seen.append((steps, [layer.keys.shape for layer in cache.layers if hasattr(layer, "keys")]))
    assert seen[0] == seen[1] == seen[2]
    planned = {(stage, layer) for stage in ("encoder", "llm") for layer in schedule.plan(stage)}
    assert {step[:2] for step in seen[0][0]} == planned


def test_the_limit_neither_scores_nor_merges(model) -> None:
    inputs, schedule, limit = make_inputs([Prompt()]), il.Schedule(encoder={1: 30, 2: 20}, llm={2: 0.5}), Limit()
    with il.attach(model, limit, schedule) as trace:
        measure.prefill(model, inputs)
        # Once its lists are made, it looks at nothing but shapes.
        maps = [limit.map(_Shape(step), step.map.slots) for step in trace.steps]
    assert all(new is step.map for new, step in zip(maps, trace.steps, strict=True))
    assert all(map.weight is None for map in maps)


class _Shape:
    """All that the limit may look at."""

    def __init__(self, step: object) -> None:
        self.stage, self.layer = step.stage, step.layer
        self.batch, self.count = len(step.rows), step.map.tokens


@pytest.mark.slow
def test_the_table(lab: il.Lab) -> None:
    table = bench(lab, ["illava", "downsample", Fails], keep=0.5, preset=["fastv", "tome-16"], batch_sizes=[1, 2],
                  text_tokens=[40], **QUICK)  # fmt: skip
    assert tuple(table.columns) == columns([1, 3])
    names = ["bare", "none", "illava", "downsample", "test-fails", "fastv", "tome"]
    assert list(zip(table["strategy"], table["batch"], strict=True)) == [(n, b) for b in (1, 2) for n in names]
    assert table["status"].tolist()[4:7:2] == [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "the preset needs 23 layers, this model has 8",
    ]  # fmt: skip
    good = table[table["status"] == "ok"]
    assert len(good) == 10
    assert (good[["prefill_ms", "decode_ms", "images_per_second", "prefill_ratio", "decode_ratio"]] > 0).all(axis=None)
    names = ("bare", "none", "illava", "downsample", "fastv")
    bare, none, illava, down, fastv = (good[good["strategy"] == name] for name in names)
    assert (bare["prefill_ratio"] == 1).all() and (bare["efficiency"] == 1).all()
    assert np.allclose(none["efficiency"] * none["prefill_ratio"], 1)  # nothing is dropped: the limit is the bare model
    assert (illava["efficiency"] > 0).all() and down["efficiency"].isna().all()
    assert (good.loc[good["strategy"] != "downsample", "over_hand"] > 0).all() and down["over_hand"].isna().all()
    assert (good["prefill_host_ms"] <= good["prefill_ms"]).all() and not good["graphs"].any()
    never = ["prefill_device_ms", "decode_device_ms", "busy_ms", "largest_batch"]
    assert good[never].isna().all(axis=None)  # there is no device beside the CPU
    assert fastv["preset"].tolist() == ["fastv"] * 2 and fastv["keep"].isna().all()

    # The closed form and the count agree, and both are those of one prompt, whatever the batch.
    assert np.allclose(good["prefill_flops"], good["prefill_flops_formula"], rtol=0.01)
    assert illava["prefill_flops"].nunique() == bare["prefill_flops"].nunique() == 1
    assert (illava["prefill_flops"].to_numpy() < bare["prefill_flops"].to_numpy()).all()
    one, two = bare["cache_bytes"]
    assert two == 2 * one and (illava["cache_bytes"].to_numpy() < bare["cache_bytes"].to_numpy()).all()
    patches, config = describe(lab.model).patches, lab.model.config.text_config
    entry = 2 * config.num_key_value_heads * config.hidden_size // config.num_attention_heads * 4
    assert one == (patches + 40) * config.num_hidden_layers * entry  # the text is as long as was asked for
    whole = illava["prefill_ms"] + illava["new_tokens"] * illava["decode_ms"]
    assert np.allclose(illava["images_per_second"], illava["batch"] / whole * 1e3)
    # Measured, not computed; two more tokens take time.
    assert (good["images_per_second_1"] > good["images_per_second_3"]).all()

    text = summary(table)
    assert max(map(len, text.splitlines())) <= 120
    assert "Batch 2, 40 tokens of text" in text and "test-fails keep 0.5: OutOfMemoryError: CUDA" in text
    assert "3 new" in text and "x by hand" in text


@pytest.mark.parametrize("kind", ["clip-llama", QWENS[0]])
def test_every_stage_takes_time_and_no_hook_is_left(kind: str) -> None:
    model, inputs = shared_llava(kind), make_inputs([Prompt()], kind)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    strategy = il.get_strategy("illava")()
    with il.attach(model, strategy, il.Schedule(encoder={1: 0.5}, llm={2: 0.5})):
        seconds = measure.stage_seconds(model, inputs, strategy=strategy)
    assert tuple(seconds) == (*measure.STAGES, "choice") and min(seconds.values()) > 0
    assert seconds["choice"] < seconds["encoder"] + seconds["llm"] and "map" not in vars(strategy)
    assert seconds["encoder"] > seconds["projector"]  # also where the projector is a part of the tower
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


def test_a_stopped_run_goes_on(lab: il.Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, original = [], Case.measure

    def once(case: Case) -> dict:
        measured.append(case.row.label)
        if measured == ["bare keep 1", "none keep 1", "fastv keep 0.5"]:
            raise KeyboardInterrupt
        return original(case)

    monkeypatch.setattr(Case, "measure", once)
    with pytest.raises(KeyboardInterrupt):
        bench(lab, ["fastv"], out=tmp_path / "out", **QUICK)
    before = (tmp_path / "out" / "run.jsonl").read_text()
    assert list(pd.read_csv(tmp_path / "out" / "table.csv")["strategy"]) == ["bare", "none"]
    table = bench(lab, ["fastv"], out=tmp_path / "out", **QUICK)
    assert measured[3:] == ["fastv keep 0.5"]
    assert (tmp_path / "out" / "run.jsonl").read_text().startswith(before)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "table.csv"), table, check_dtype=False)
    stored = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert stored["about"].keys() >= {"command", "processor", "device", "torch", "seed", "threads", "date"}
    assert [row["strategy"] for row in stored["rows"]] == ["bare", "none", "fastv"]
    with pytest.raises(il.LabError, match="holds measurements with rounds=1, this one has 2"):
        bench(lab, ["fastv"], out=tmp_path / "out", **{**QUICK, "rounds": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": []}, "strategy must hold at least one"),
        ({"strategy": ["ilava"]}, "unknown strategy 'ilava'"),
        ({"preset": ["fasttv"]}, "unknown preset 'fasttv'; did you mean fastv"),
        ({"keep": [0.0]}, "keep must be a fraction"),
        ({"batch_sizes": [1, 0]}, "batch_sizes must be a whole number of at least 1, got 0"),
        ({"text_tokens": [2]}, "text_tokens must be at least .*, the prompt around a question; got 2"),
        ({"rounds": 0}, "rounds must be"),
        ({"new_tokens": 0}, "new_tokens must be"),
        ({"answers": [16, 1]}, r"answers must be in rising order, got \[16, 1\]"),
        ({"answers": [0]}, "answers must be a whole number of at least 1, got 0"),
        ({"graphs": "yes"}, "graphs must be True or False, got 'yes'"),
        ({"largest_batch": 0}, "largest_batch must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    lab: il.Lab, monkeypatch: pytest.MonkeyPatch, change: dict, message: str
) -> None:
    monkeypatch.setattr(Case, "measure", lambda self: pytest.fail("work was begun"))
    with pytest.raises(il.LabError, match=message):
        bench(lab, **{"strategy": ["illava"], "progress": False, **change})


def test_a_failed_run_keeps_no_tensors(model) -> None:
    class Holds(il.Scorer):
        name = "holds"

        def score(self, tokens: il.Tokens) -> torch.Tensor:
            try:
                raise KeyError("first")
            except KeyError:
                raise RuntimeError("then")  # noqa: B904

    (failed,) = measure.speeds(model, make_inputs([Prompt()]), [(Holds(), il.Schedule(llm={2: 10}))], rounds=1)
    assert str(failed) == "then"
    assert failed.__traceback__ is failed.__context__ is None  # through these, frames with their tensors stay alive


@pytest.mark.slow
def test_prompts_of_several_pictures_and_films_have_a_closed_form(tmp_path: Path) -> None:
    """And the budget by FLOPs is exact for what is shown."""
    (tmp_path / "small.json").write_text(json.dumps(scaled_down("qwen2-vl-7b")))
    small, draw = il.load(f"random:{tmp_path / 'small.json'}", dtype="float32"), np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    film = il.read_video(draw.integers(0, 256, (4, 280, 280, 3), dtype=np.uint8), frames=4)
    table = bench(small, ["illava"], flops=0.9, image=[picture, film], **QUICK)
    assert (table["status"] == "ok").all()
    assert np.allclose(table["prefill_flops"], table["prefill_flops_formula"], rtol=0.01)
    bare, _, illava = table["prefill_flops"]
    assert illava / bare == pytest.approx(0.9, rel=0.01)
