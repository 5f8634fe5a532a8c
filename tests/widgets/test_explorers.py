"""Explorers: what they show is what the plain functions compute; settings, the page's data and pictures agree."""

from __future__ import annotations

import base64
import json
import zlib
from io import BytesIO

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

import illava_lab as il
from illava_lab.measuring.redundancy import clusters
from illava_lab.views.pictures import seen_image, to_png
from illava_lab.widgets import explorer as shared
from illava_lab.widgets.merge_explorer import MergeExplorer, _millionths, merge_figure, merge_panels, places_before
from illava_lab.widgets.panels import Panel, live, still
from illava_lab.widgets.redundancy_explorer import RedundancyExplorer, redundancy_figure
from illava_lab.widgets.tables import leftover, packed

QUESTION = "What is the word?"


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return il.load_task("test").image("test-0006")


@pytest.fixture(scope="module")
def redundancy(lab: il.Lab, image: Image.Image) -> RedundancyExplorer:
    return RedundancyExplorer(lab, {"scene": image, "grey": Image.new("RGB", (112, 112), "grey")}, QUESTION, patch=20)


@pytest.fixture(scope="module")
def merge(lab: il.Lab, image: Image.Image) -> MergeExplorer:
    return MergeExplorer(lab, image, QUESTION, ("illava", "tome", "fastv"), keep=0.5, patch=20)


# --------------------------------------------------------------------------------------------- panels
def test_both_drawings_show_the_same_cells() -> None:
    values = np.array([[0.0, 0.5, 1.0], [np.nan, 0.25, 0.75]])
    rows = [
        Panel("a<br>b", (2, 3), Image.new("RGB", (3, 2), "red"), values, legend="x", frames=[4]),
        Panel("c", (2, 3), note="none"),
    ]
    figure, picture = live(rows), still(rows)
    json.dumps([trace.z.tolist() for trace in figure.data], allow_nan=False)
    assert (
        np.allclose(figure.data[0].z.astype(float), values, equal_nan=True)
        and figure.data[0].showscale
        and not figure.data[1].showscale
    )
    drawn = picture.axes[0].get_images()[-1].get_array().filled(np.nan)
    assert np.allclose(drawn, values, equal_nan=True)
    assert {(s.x0, s.y0) for s in figure.layout.shapes} == {(0.5, 0.5)}  # patch 4 is row 1, column 1
    assert {(p.get_x(), p.get_y()) for p in picture.axes[0].patches} == {(0.5, 0.5)}
    assert len(figure.layout.images) == 1 and figure.layout.yaxis.range[0] > figure.layout.yaxis.range[1], (
        "row 0 is on top"
    )
    with Image.open(BytesIO(to_png(picture))) as png:
        assert len(png.convert("RGB").getcolors(10**6)) > 20
    with pytest.raises(il.LabError, match="values must have the shape"):
        Panel("a", (3, 3), values=values)


# --------------------------------------------------------------------------------------------- redundancy
def test_redundancy_explorer_shows_the_similarity(
    redundancy: RedundancyExplorer, lab: il.Lab, image: Image.Image
) -> None:
    redundancy.set(image="scene", stage="llm", layer=3, patch=37, centred=True)
    x = redundancy.recordings["scene"].hidden["llm"][3]
    x = x - x.mean(0)
    want = torch.stack([torch.cosine_similarity(x[37], row, dim=0) for row in x]).view(14, 14)
    assert np.allclose(redundancy.panels(**redundancy.settings)[1].values, want, atol=1e-5)
    twin = redundancy_figure(
        seen_image(lab, image), redundancy.recordings["scene"], stage="llm", layer=3, patch=37, centred=True
    )
    assert np.allclose(twin.data[1].z.astype(float), want, atol=1e-5)
    said = redundancy.describe(**redundancy.settings)
    assert "patch 37" in said and "layer 3 of the LLM" in said and "-0.00" not in said


def test_redundancy_settings_fit_each_other(redundancy: RedundancyExplorer) -> None:
    redundancy.set(stage="encoder", layer=8, third="attention")
    assert "leaves the image encoder" in redundancy.describe(**redundancy.settings)
    assert "no attention" in redundancy.panels(**redundancy.settings)[2].note
    redundancy.set(stage="llm")  # which has six layers
    assert redundancy.settings["layer"] == 6
    redundancy.set(layer=np.int64(2), patch=np.int64(33))
    json.dumps(redundancy.settings)
    redundancy.widget.shown = {**redundancy.settings, "patch": 34}  # as the page does
    assert redundancy.settings["patch"] == 34
    before = redundancy.settings
    for asked, says in (
        ({"stage": "llm", "layer": 7}, "between 0 and 6 in the llm"),
        ({"image": "photo"}, "image must be one of"),
        ({"colour": 1}, "control must be one of"),
        ({"centred": "yes"}, "centred must be one of"),
        ({"third": "rest", "patch": 3}, "third must be one of"),
    ):
        with pytest.raises(il.LabError, match=says):
            redundancy.set(**asked)
    assert redundancy.settings == before, "a refused change moves nothing"


def test_tables_keep_every_hundredth() -> None:
    """The guesses of `leftover`, made as the page makes them."""
    chance = np.random.default_rng(0)
    for low, high in ((-100, 101), (90, 101), (-3, 4)):
        first, second = (chance.integers(low, high, (9, 9)) for _ in range(2))
        first, second = (np.triu(table) + np.triu(table, 1).T for table in (first, second))
        second = np.where(chance.random((9, 9)) < 0.2, second, first)  # a layer that is like the one before it
        second = np.triu(second) + np.triu(second, 1).T
        for table, before in ((first, None), (second, first)):
            share, left = leftover(table, before)
            off = (share * before + 2) // 4 if before is not None else np.zeros_like(table)
            assert left.dtype == np.uint8 and (before is None) <= (share == 0)
            assert np.array_equal(_read(left, off), table)
    packs = packed([np.arange(3, dtype="<i2"), np.arange(2, dtype="<i2")])
    assert np.array_equal(np.frombuffer(zlib.decompress(packs), "<i2"), [0, 1, 2, 0, 1])


def _read(left: np.ndarray, off: np.ndarray) -> np.ndarray:
    count, rest = len(off), iter(left.tolist())
    less = np.zeros((count + 1, count + 1), int)  # with a row and a column of zeros before the first
    for row in range(1, count + 1):
        for column in range(row, count + 1):
            west, north, corner = less[row, column - 1], less[row - 1, column], less[row - 1, column - 1]
            guess = sorted((west, north, west + north - corner))[1]  # their median: another way to say it
            value = (guess + off[row - 1, column - 1] + next(rest) + 128) % 256 - 128
            less[row, column] = less[column, row] = value - off[row - 1, column - 1]
    return less[1:, 1:] + off


def test_what_is_stored_of_redundancy_is_text(redundancy: RedundancyExplorer) -> None:
    stored = json.loads(json.dumps(redundancy.store(), allow_nan=False))
    assert stored["start"] == redundancy.settings
    assert list(stored["numbers"]) == list(redundancy.widget.numbers) == ["0,0", "1,0"], "a small model needs one block"
    for key, sent in redundancy.widget.numbers.items():
        one = stored["numbers"][key]
        assert base64.b64decode(one["cosines"]) == sent["cosines"] and len(one["shares"]) == 2 * (9 + 7)
        assert len(zlib.decompress(sent["others"])) == 2 * 196 * (9 + 7) * 7


def test_a_large_model_is_compared_where_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, lab: il.Lab, image: Image.Image
) -> None:
    monkeypatch.setattr("illava_lab.widgets.redundancy_explorer.PAIRS", 3 * 196**2)  # so many layers in a block
    monkeypatch.setattr("illava_lab.widgets.redundancy_explorer.ROOM", 2)
    explorer = RedundancyExplorer(lab, {"scene": image, "turned": image.rotate(90)}, QUESTION)
    assert explorer.widget.catalog["blocks"] == [[0, 3], [3, 6], [6, 9], [9, 12], [12, 15], [15, 16]]
    assert list(explorer.widget.numbers) == ["0,0"], "what is shown at first"
    explorer.set(stage="llm", layer=2)
    assert list(explorer.widget.numbers) == ["0,0", "0,3"]
    explorer.widget.shown = {**explorer.settings, "image": "turned", "layer": 3}  # as the page does
    assert list(explorer.widget.numbers) == ["0,3", "1,4"], "the one that was asked for first made room"
    explorer.widget.shown = {**explorer.settings, "layer": 4}
    assert list(explorer.widget.numbers) == ["0,3", "1,4"], "it is there"
    # The first tables of a block lean on none before it.
    assert explorer.widget.numbers["1,4"]["shares"][:2] == [0, 0]
    rows = np.frombuffer(zlib.decompress(explorer.widget.numbers["1,4"]["others"]), "<i2").reshape(-1, 196)
    x = explorer.recordings["turned"].hidden["llm"][4]  # the second place of its block
    assert np.array_equal(rows[3 * 2 + 2], clusters(x, 0.9)), "of its plain cosines, the third row"
    assert set(explorer.store()["numbers"]) == {f"{image},{block}" for image in range(2) for block in range(6)}


# --------------------------------------------------------------------------------------------- merging
def test_merge_explorer_shows_provenance(merge: MergeExplorer, lab: il.Lab, image: Image.Image) -> None:
    merge.set(strategy="tome", step=8, patch=20)
    sources = merge.answers["tome"].trace.sources(0)
    survivor = int(sources.owner()[20])
    values = merge.panels(**merge.settings)[2].values
    assert np.allclose(np.nan_to_num(values).flatten(), sources.weights[survivor])
    assert f"stands for {len(sources.patches(survivor))} patches" in merge.describe(**merge.settings)
    twin = merge_figure(seen_image(lab, image), merge.answers["tome"].trace, 8, 20)
    assert np.allclose(twin.data[2].z.astype(float), values, equal_nan=True)
    hover = twin.data[1].customdata[1][6]
    assert "patch 20" in hover and f"{float(sources.weights[survivor, 20]):.3f}" in hover


def test_scores_stand_where_their_tokens_stand(lab: il.Lab, image: Image.Image, merge: MergeExplorer) -> None:
    """Keeping by place is a strategy whose scores say where they belong, in an order that is not the image's."""

    class Shuffled(il.Strategy):
        name = "shuffled"

        def map(self, tokens: il.Tokens, keep: int) -> il.TokenMap:
            order = torch.randperm(tokens.count - 1, generator=torch.Generator().manual_seed(tokens.layer)) + 1
            first = torch.zeros(1, dtype=torch.long) if tokens.has_protected else order[:0]
            order = order if tokens.has_protected else order - 1
            anchor = torch.cat([first, order[: keep - len(first)]])[None]
            return il.TokenMap.keep(anchor, tokens.count, score=tokens.position.float())

    trace = lab.ask(
        image, QUESTION, Shuffled(), schedule=il.Schedule(encoder={2: 150, 4: 120, 5: 100}, llm={1: 80, 2: 60})
    ).trace
    seen = seen_image(lab, image)
    for step in range(1, 6):
        values = merge_panels(seen, trace, step)[0].values.flatten()
        there = ~np.isnan(values)
        assert there.sum() == trace.steps[step - 1].before
        assert np.array_equal(values[there], np.flatnonzero(there)), "each score is that of its own patch"
    assert (places_before(trace, 1)[:1] == -1).all()


def test_merge_settings_fit_each_other(merge: MergeExplorer) -> None:
    merge.set(strategy="tome", step=8)
    assert "not<br>rank" in merge.panels(**merge.settings)[0].note
    merge.set(strategy="fastv")
    assert merge.settings["step"] == 1
    gone = int((merge.answers["fastv"].trace.sources(0).owner() < 0).nonzero()[0])
    merge.set(patch=gone)
    assert merge.settings["patch"] == gone and "no token stands for it" in merge.describe(**merge.settings)
    before = merge.settings
    with pytest.raises(il.LabError, match="step must be between 0 and 1"):
        merge.set(strategy="fastv", step=2)
    with pytest.raises(il.LabError, match="patch must be between"):
        merge.set(patch=196)
    assert merge.settings == before, "a refused change moves nothing"


def test_the_page_has_tokens_weights_and_scores(merge: MergeExplorer) -> None:
    catalog = json.loads(json.dumps(merge.store(), allow_nan=False))["catalog"]
    assert catalog["grid"] == [14, 14] and catalog["window"] == [0, 0, 1, 1]
    for method, answer in zip(catalog["strategies"], merge.answers.values(), strict=True):
        assert method["answer"] == answer.text and len(method["steps"]) == len(answer.trace.steps) + 1
        for step, sent in enumerate(method["steps"]):
            sources = answer.trace.sources(0, step)
            weights = torch.zeros_like(sources.weights)
            weights[torch.arange(len(sources.anchor)), torch.tensor(sent["anchor"])] = 1
            for token, own, millionths in sent["groups"]:
                weights[token] = 0
                weights[token, own] = torch.tensor(millionths).double() / 1e6
                assert own == sources.patches(token)
            assert torch.allclose(weights, sources.weights, atol=2e-6)
    ranked = catalog["strategies"][2]["steps"][1]["ranked"]
    scores = merge.answers["fastv"].trace.steps[0].scores[0]
    assert np.allclose(ranked["scores"], scores.sort(descending=True).values, rtol=1e-3)


@pytest.mark.parametrize(
    "weight", [1 / 16, 3 / 16, 1 / 80, 0.0625001, 0.0624999, 0.0124999999, 1.0, 0.0, 2e-7, -1 / 16, -0.3]
)
def test_weights_are_said_as_python_rounds_them(weight: float) -> None:
    number = _millionths(weight)
    assert abs(number - 1e6 * weight) <= 1.5
    sign = "-" if weight < 0 else ""
    assert f"{sign}{(abs(number) + 500) // 1000 / 1000:.3f}" == f"{weight:.3f}"


# --------------------------------------------------------------------------------------------- both
@pytest.mark.parametrize("name", ["redundancy", "merge"])
def test_the_static_picture_follows(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    explorer, pictures = request.getfixturevalue(name), []
    monkeypatch.setattr(shared, "show_widget", lambda widget, png, alt: pictures.append((widget, png, alt)))
    explorer.show(patch=40)
    explorer.show(patch=150)
    assert explorer.widget.start == explorer.settings, "Reset goes where the reader began"
    assert pictures[0][0] is explorer.widget and pictures[0][1] != pictures[1][1]
    assert pictures[1][2] == explorer.describe(**explorer.settings)


def test_plotly_still_takes_its_tool_bar_away() -> None:
    assert hasattr(go.FigureWidget(), "_config"), "output.live_figure sets it, and it has no public name"
