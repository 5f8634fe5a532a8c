"""Explorers: what they show is what the plain functions compute; controls, clicks and pictures agree."""

from __future__ import annotations

import json
import time
from io import BytesIO

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

import illava_lab as il
from illava_lab.views.pictures import seen_image, to_png
from illava_lab.widgets import explorer as shared
from illava_lab.widgets.merge_explorer import MergeExplorer, merge_figure, merge_panels, places_before
from illava_lab.widgets.output import sync
from illava_lab.widgets.panels import Panel, live, still
from illava_lab.widgets.redundancy_explorer import RedundancyExplorer, redundancy_figure

QUESTION = "What is the word?"
SECONDS = 1.0  # on the slowest shared machine; 0.1 s were measured


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


def shown(explorer: RedundancyExplorer | MergeExplorer) -> list[np.ndarray]:
    return [np.asarray(trace.z, dtype=float) for trace in explorer.view.widget.data]


def click(explorer: RedundancyExplorer | MergeExplorer, panel: int, row: int, column: int) -> None:
    """What the page sends when a cell is clicked."""
    explorer.view.widget._js2py_pointsCallback = {
        "event_type": "plotly_click",
        "points": {
            "trace_indexes": [panel],
            "point_indexes": [[row, column]],
            "xs": [column],
            "ys": [row],
            "zs": [0.0],
        },
        "device_state": {"alt": False, "ctrl": False, "meta": False, "shift": False, "button": 0, "buttons": 1},
        "selector": None,
    }


def assert_synced(widget: go.FigureWidget) -> None:
    """A page that attaches later gets the figure as it is now."""
    assert [a["text"] for a in widget._widget_layout["annotations"]] == [a.text for a in widget.layout.annotations]
    for sent, trace in zip(widget._widget_data, widget.data, strict=True):
        assert np.array_equal(np.asarray(sent["z"], dtype=float), np.asarray(trace.z, dtype=float), equal_nan=True)


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
    assert np.allclose(shown(redundancy)[1], want, atol=1e-5)
    twin = redundancy_figure(
        seen_image(lab, image), redundancy.recordings["scene"], stage="llm", layer=3, patch=37, centred=True
    )
    assert np.allclose(twin.data[1].z.astype(float), shown(redundancy)[1])
    assert "patch 37" in redundancy.text.value and "layer 3 of the LLM" in redundancy.text.value
    assert_synced(redundancy.view.widget)


def test_redundancy_controls_fit_each_other(redundancy: RedundancyExplorer) -> None:
    redundancy.set(stage="encoder", layer=8, third="attention")
    assert "leaves the image encoder" in redundancy.text.value
    assert "no attention" in "".join(a.text for a in redundancy.view.widget.layout.annotations)
    redundancy.stage.value = "llm"  # which has six layers
    assert redundancy.settings["layer"] == 6
    click(redundancy, panel=1, row=2, column=5)
    assert redundancy.settings["patch"] == 2 * 14 + 5
    field = next(child for child in redundancy.box.children[0].children[-1].children if child.description == "layer")
    field.value = 2
    assert redundancy.settings["layer"] == 2 and field.max == 6, "the field beside a slider does the same"
    redundancy.reset.click()
    assert redundancy.settings == {
        "image": "scene",
        "stage": "encoder",
        "layer": 0,
        "patch": 20,
        "centred": False,
        "third": "groups",
    }
    with pytest.raises(il.LabError, match="between 0 and 6 in the llm"):
        redundancy.set(stage="llm", layer=7)
    with pytest.raises(il.LabError, match="image must be one of"):
        redundancy.set(image="photo")
    with pytest.raises(il.LabError, match="control must be one of"):
        redundancy.set(colour=1)
    assert redundancy.settings["layer"] == 0, "a refused change moves nothing"


# --------------------------------------------------------------------------------------------- merging
def test_merge_explorer_shows_provenance(merge: MergeExplorer, lab: il.Lab, image: Image.Image) -> None:
    merge.set(strategy="tome", step=8, patch=20)
    sources = merge.answers["tome"].trace.sources(0)
    survivor = int(sources.owner()[20])
    assert np.allclose(np.nan_to_num(shown(merge)[2]).flatten(), sources.weights[survivor])
    assert f"stands for {len(sources.patches(survivor))} patches" in merge.text.value
    twin = merge_figure(seen_image(lab, image), merge.answers["tome"].trace, 8, 20)
    assert np.allclose(twin.data[2].z.astype(float), shown(merge)[2], equal_nan=True)
    hover = twin.data[1].customdata[1][6]
    assert "patch 20" in hover and f"{float(sources.weights[survivor, 20]):.3f}" in hover
    assert_synced(merge.view.widget)


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


def test_merge_controls_fit_each_other(merge: MergeExplorer) -> None:
    merge.set(strategy="tome", step=8)
    assert "not<br>rank" in "".join(a.text for a in merge.view.widget.layout.annotations)
    merge.strategy.value = "fastv"
    assert merge.settings["step"] == 1 == merge.step.max
    gone = int((merge.answers["fastv"].trace.sources(0).owner() < 0).nonzero()[0])
    click(merge, panel=1, row=gone // 14, column=gone % 14)
    assert merge.settings["patch"] == gone and "no token stands for it" in merge.text.value
    merge.reset.click()
    assert merge.settings == {"strategy": "illava", "step": 0, "patch": 20}
    with pytest.raises(il.LabError, match="step must be between 0 and 1"):
        merge.set(strategy="fastv", step=2)
    with pytest.raises(il.LabError, match="patch must be between"):
        merge.set(patch=196)


@pytest.mark.parametrize("name", ["redundancy", "merge"])
def test_a_move_is_fast_and_the_static_picture_follows(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer, pictures = request.getfixturevalue(name), []
    monkeypatch.setattr(shared, "show_widget", lambda box, png, alt: pictures.append((box, png, alt)))
    times = []
    for patch in range(30, 36):
        start = time.perf_counter()
        explorer.patch.value = patch
        times.append(time.perf_counter() - start)
    assert sorted(times)[3] < SECONDS
    explorer.show(patch=40)
    explorer.show(patch=150)
    assert pictures[0][0] is explorer.box and pictures[0][1] != pictures[1][1]
    assert pictures[1][2] == explorer.text.value


def test_plotly_still_has_what_sync_relies_on() -> None:
    widget = go.FigureWidget()
    for name in ("_widget_layout", "_widget_data", "_data", "_config"):
        assert hasattr(widget, name)
    assert hasattr(widget._layout_obj, "_props") and sync(widget) is None
