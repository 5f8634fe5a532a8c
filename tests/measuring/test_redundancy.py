"""How alike tokens are: one recording pass against transformers' own outputs, measures against plain re-statements."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import Prompt, make_inputs, random_llava
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import illava_lab as il
from illava_lab.measuring import redundancy
from illava_lab.models.families import describe
from illava_lab.session.lab import Lab


class RandomLab(Lab):
    """A random model, which has no processor."""

    def inputs(self, images, questions) -> dict[str, Tensor]:
        return make_inputs([Prompt(images=len(images))])


@pytest.fixture
def lab(model) -> Lab:
    return RandomLab(model, None, "random")


IMAGE = Image.new("RGB", (48, 48))


# --------------------------------------------------------------------------------------------- recording
def test_a_recording_is_what_transformers_reports(lab: Lab) -> None:
    recording, anatomy = redundancy.record(lab, IMAGE), describe(lab.model)
    inputs = lab.inputs([IMAGE], ["?"])
    visual = (inputs["input_ids"][0] == anatomy.image_token_id).nonzero()[:, 0]
    lab.model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            tower = anatomy.tower(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
            out = lab.model(**inputs, output_hidden_states=True, output_attentions=True)
    finally:
        lab.model.set_attn_implementation("sdpa")
    cls, depth = anatomy.cls_tokens, anatomy.encoder_depth
    states = torch.cat(tower.hidden_states[: depth + 1])[:, cls:]
    assert torch.allclose(recording.hidden["encoder"], states, atol=1e-5)
    received = torch.cat(tower.attentions[:depth]).mean(dim=(1, 2))[:, cls:]
    assert torch.allclose(recording.attention["encoder"], received, atol=1e-6)
    llm = torch.cat(out.hidden_states)[:, visual]
    assert torch.allclose(recording.hidden["llm"][:-1], llm[:-1], atol=1e-4)
    normed = anatomy.language_model.norm(
        recording.hidden["llm"][-1]
    )  # transformers reports the last one after the norm
    assert torch.allclose(normed, llm[-1], atol=1e-4)
    rows = torch.cat(out.attentions).mean(dim=1)[:, -1]
    assert torch.allclose(recording.attention["llm"], rows[:, visual], atol=1e-5)
    assert torch.allclose(recording.first_token, rows[:, 0], atol=1e-5)


def test_recording_runs_the_model_once_and_leaves_it_as_it_was(lab: Lab) -> None:
    anatomy, runs = describe(lab.model), []
    before = {name: dict(vars(module)) for name, module in lab.model.named_modules()}
    with_count = anatomy.tower.register_forward_hook(lambda *_: runs.append(1))
    redundancy.record(lab, IMAGE)
    with_count.remove()
    assert runs == [1]
    assert before == {name: dict(vars(module)) for name, module in lab.model.named_modules()}


def test_what_cannot_be_recorded_is_said(lab: Lab) -> None:
    with il.attach(lab.model, "none"), pytest.raises(il.LabError, match="leave the attach block"):
        redundancy.record(lab, IMAGE)
    lab_of_two = type("Two", (RandomLab,), {"inputs": lambda self, *_: make_inputs([Prompt(images=2)])})
    with pytest.raises(il.LabError, match="one image of 36 patches"):
        redundancy.record(lab_of_two(lab.model, None, "random"), IMAGE)
    with pytest.raises(il.LabError, match="one grid of patches each"):
        redundancy.record(RandomLab(random_llava("next"), None, "random"), IMAGE)


# --------------------------------------------------------------------------------------------- measures
matrices = st.builds(
    lambda seed, rows, columns: torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)),
    st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 8),
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(matrices, st.booleans())
def test_similarity_against_loops(x: Tensor, centred: bool) -> None:
    rows = [[float(v) for v in row] for row in x]
    if centred:
        mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        rows = [[v - m for v, m in zip(row, mean, strict=True)] for row in rows]
    got, pairs = redundancy.similarity(x, centred), []
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            dot = sum(u * v for u, v in zip(a, b, strict=True))
            want = dot / math.sqrt(sum(u * u for u in a)) / math.sqrt(sum(v * v for v in b))
            assert float(got[i, j]) == pytest.approx(want, abs=1e-4)
            pairs += [want] if i != j else []
    if not centred:
        assert redundancy.mean_similarity(x) == pytest.approx(sum(pairs) / len(pairs), abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(matrices, st.floats(0.1, 100))
def test_effective_rank_lies_between_one_and_the_rank_and_ignores_scale(x: Tensor, factor: float) -> None:
    rank = redundancy.effective_rank(x)
    assert 1 <= rank <= min(x.shape) + 1e-9
    assert redundancy.effective_rank(factor * x) == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_known_matrices() -> None:
    assert redundancy.effective_rank(torch.eye(5)) == pytest.approx(5)
    assert redundancy.effective_rank(torch.outer(torch.arange(1.0, 5), torch.ones(3))) == pytest.approx(1)
    parts = (3 / 4, 1 / 4)
    assert redundancy.effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in parts))
    )
    assert redundancy.effective_rank(torch.eye(3) + 1, centred=True) == pytest.approx(
        2, rel=1e-4
    )  # a triangle lies in a plane


@settings(max_examples=40, deadline=None)
@given(matrices, st.floats(-0.5, 0.99))
def test_clusters_keep_their_promise(x: Tensor, least: float) -> None:
    label, cosine = redundancy.clusters(x, least), redundancy.similarity(x)
    same = label[:, None] == label[None]
    assert (cosine[same] >= least - 1e-5).all()
    groups = int(label.max()) + 1
    assert sorted(set(label.tolist())) == list(range(groups)) and label[0] == 0
    for a in range(groups):  # no two groups could be joined without breaking the promise
        for b in range(a):
            assert cosine[label == a][:, label == b].min() < least + 1e-5


def test_by_distance_against_loops() -> None:
    height, width = 3, 4
    cosine = redundancy.similarity(torch.randn(12, 5, generator=torch.Generator().manual_seed(0)))
    found: dict[int, list[float]] = {}
    for i in range(12):
        for j in range(12):
            if i != j:
                apart = round(math.dist(divmod(i, width), divmod(j, width)))
                found.setdefault(apart, []).append(float(cosine[i, j]))
    got = redundancy.by_distance(cosine, (height, width))
    assert len(got) == max(found)
    for apart, values in found.items():
        assert float(got[apart - 1]) == pytest.approx(sum(values) / len(values), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.floats(0.01, 1.0))
def test_holders_is_the_smallest_set(values: list[float], share: float) -> None:
    count, order = redundancy.holders(torch.tensor(values), share), sorted(torch.tensor(values).tolist(), reverse=True)
    assert sum(order[:count]) >= share * sum(order) * (1 - 1e-6)
    assert sum(order[: count - 1]) < share * sum(order) * (1 + 1e-6)


def test_sinks_are_named_strongest_first() -> None:
    attention = torch.ones(20)
    attention[4], attention[11] = 20.0, 30.0
    assert redundancy.sinks(attention) == [11, 4]
    assert redundancy.sinks(attention, factor=8) == [11]
    assert redundancy.sinks(torch.ones(20)) == []


def test_profile_has_every_layer_and_the_measures_of_it(lab: Lab) -> None:
    recording = redundancy.record(lab, IMAGE)
    table = redundancy.profile(recording, least=0.5).set_index(["stage", "layer"])
    assert len(table) == sum(len(states) for states in recording.hidden.values())
    row, x, paid = table.loc[("llm", 2)], recording.hidden["llm"][2], recording.attention["llm"][2]
    assert row["similarity"] == pytest.approx(redundancy.mean_similarity(x))
    assert row["rank"] == pytest.approx(redundancy.effective_rank(x, centred=True))
    assert row["clusters"] == len(set(redundancy.clusters(x, 0.5).tolist()))
    near = redundancy.by_distance(redundancy.similarity(x, centred=True), recording.grid)[0]
    assert row["neighbours"] == pytest.approx(float(near))
    assert (row["half"], row["visual"]) == (redundancy.holders(paid), pytest.approx(float(paid.sum())))
    assert table.loc[("llm", len(recording.attention["llm"]))].isna().sum() == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: redundancy.similarity(torch.zeros(2, 3, 4)), "must be a matrix"),
        (lambda: redundancy.mean_similarity(torch.zeros(1, 4)), "two tokens"),
        (lambda: redundancy.effective_rank(torch.zeros(3, 4)), "zeros"),
        (lambda: redundancy.clusters(torch.zeros(3, 4), least=1.0), "least must be"),
        (lambda: redundancy.by_distance(torch.zeros(3, 3), (2, 2)), "2 x 2 patches"),
        (lambda: redundancy.holders(torch.ones(3), 0.0), "share must be"),
        (lambda: redundancy.sinks(torch.ones(3), 0.0), "factor must be"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(il.LabError, match=message):
        call()
