"""What the chapters draw and count with: the six tokens, the pipeline, what is removed, fates."""

from __future__ import annotations

import math

import pytest
import torch

import illava_lab as il
from illava_lab import LabError, course
from illava_lab.course import redundant, removal, six_tokens, stages
from illava_lab.course.fates import fates

EMBEDDED = il.load()
TASK = il.load_task("test")
IMAGE = TASK.image("test-0006")


def test_the_six_tokens_go_where_a_hand_calculation_sends_them() -> None:
    first = six_tokens.step("illava", 4)
    second = six_tokens.step("illava", 3, after=first)
    expected = [[1, 0, 0, 0, 0, 0], [0, 1 / 3, 1 / 3, 1 / 9, 0, 2 / 9], [0, 0, 0, 0, 1, 0]]
    assert torch.allclose(first.then(second).matrix()[0], torch.tensor(expected, dtype=torch.float64))
    tome = il.get_strategy("tome")(order="raster")
    joined = six_tokens.step(tome, 4)
    whole = joined.then(six_tokens.step(tome, 3, after=joined))
    expected = [[0.25, 0.25, 0.25, 0, 0.25, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]]
    assert torch.allclose(whole.matrix()[0], torch.tensor(expected, dtype=torch.float64), atol=1e-6)


def test_a_key_for_many_gets_less_until_its_size_is_added() -> None:
    tome = il.get_strategy("tome")(order="raster")
    query = torch.tensor([0.0, 3.0])
    six, alone, mended = six_tokens.attention_shares(query, six_tokens.step(tome, 4)).values()
    weight = [math.exp(3 * math.sin(math.radians(angle))) for angle in six_tokens.DEGREES]
    assert six.tolist() == pytest.approx(
        [sum(weight[i] for i in own) / sum(weight) for own in ([0, 1, 4], [2], [3], [5])]
    )
    mean = math.exp(sum(3 * math.sin(math.radians(six_tokens.DEGREES[i])) for i in (0, 1, 4)) / 3)
    rest = weight[2] + weight[3] + weight[5]
    assert float(alone[0]) < float(mended[0]) < float(six[0])
    assert float(alone[0]) == pytest.approx(mean / (mean + rest))
    assert float(mended[0]) == pytest.approx(3 * mean / (3 * mean + rest))


def test_the_flow_has_a_line_for_each_weight_and_a_square_for_each_token() -> None:
    first = six_tokens.step("illava", 4)
    (axes,) = six_tokens.flow_figure([first]).axes
    assert len(axes.lines) == int((first.matrix() != 0).sum()) and len(axes.collections) == 6 + 4
    assert {text.get_text() for text in axes.texts} >= {"X", "Y = W X", "135", "0.50", "0.33", "0.17"}
    (axes,) = six_tokens.flow_figure([first], weights=False).axes
    assert not {"0.50", "0.33", "0.17"} & {text.get_text() for text in axes.texts}
    assert len({line.get_linewidth() for line in axes.lines}) == 1, "nor does the width tell"
    with pytest.raises(LabError, match="at least one token map"):
        six_tokens.flow_figure([])


def test_the_pipeline_is_drawn_with_the_models_own_numbers() -> None:
    figure = course.pipeline_figure(EMBEDDED, IMAGE, "What digit is shown?")
    said = " ".join(text.get_text() for text in figure.axes[0].texts)
    for word in ("112 × 112", "14 × 14", "196 visual tokens", "(8 layers)", "(6 layers)", "projector", "What digit"):
        assert word in said, word
    assert f"“{EMBEDDED.ask(IMAGE, 'What digit is shown?').text}”" in said


def test_exactly_the_given_patches_are_removed() -> None:
    tokens = il.Tokens("llm", torch.randn(1, 6, 2), position=torch.arange(6)[None])
    assert removal.Remove((1, 4)).map(tokens, 4).anchor.tolist() == [[0, 2, 3, 5]]
    schedule = il.Schedule(llm={1: 194})
    left = EMBEDDED.ask(IMAGE, "What is the word?", removal.Remove((3, 7)), schedule=schedule).trace.sources(0)
    assert set(range(196)) - set(left.anchor.tolist()) == {3, 7}


def test_fates_count_patches() -> None:
    answers = {name: EMBEDDED.ask(IMAGE, "What is the word?", name, 0.3).trace for name in ("fastv", "illava")}
    table = fates(answers)
    assert table.loc["fastv", "tokens of one patch"] == 59 and table.loc["fastv", "patches gone"] == 137
    assert table.loc["illava", "patches gone"] == 0 and table.loc["illava", "patches in the largest token"] > 1
    assert table.loc["fastv", "steps"] == "L2"


def test_caches_are_as_long_as_what_their_layers_read() -> None:
    whole = stages.cache_lengths(EMBEDDED, IMAGE, "What is the word?", il.Schedule())
    cut = stages.cache_lengths(EMBEDDED, IMAGE, "What is the word?", il.Schedule(llm={2: 20}))
    assert len(set(whole)) == 1 and cut[:2] == whole[:2] and cut[2:] == [whole[0] - 176] * 4


def test_twins_and_groups_of_a_grey_card() -> None:
    card = il.redundancy.record(EMBEDDED, redundant.four_pictures(IMAGE)["grey card"])
    assert redundant.groups({"card": card}, centred=False).loc["enter the LLM", "card"] == 1
    plain, centred = (redundant.twins(card, 20, centred)["enter the LLM"] for centred in (False, True))
    assert plain == 195 > centred, "what all tokens share makes them alike, and nothing else does"
    noise = redundant.noise_table()
    assert noise.loc["noise + 3", "groups"] < 10 and noise["groups, mean removed"].nunique() == 1
