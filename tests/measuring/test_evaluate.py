"""Answers, exact match and the paired interval."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import illava_lab as il
from illava_lab.measuring.predict import answer_tokens, by_category, correct, predict
from illava_lab.measuring.statistics import paired_difference
from illava_lab.measuring.task_files import load_task


@pytest.fixture(scope="module")
def lab() -> Iterator[il.Lab]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on busy cores, waiting for a second thread costs more than it brings
    yield il.load()
    torch.set_num_threads(threads)


def test_exact_match_ignores_case_and_outer_space() -> None:
    task = load_task("validation").limited(16)
    answers = [f" {answer.upper()}\n" for answer in task.samples["answer"]]
    assert correct(answers, task).all()
    answers[0] += "x"
    right = correct(answers, task)
    assert not right[0] and right[1:].all()
    own = by_category(right, task)
    assert sorted(own) == task.categories
    assert own[task.samples["category"][0]] < 1


def test_predict_under_a_strategy_equals_single_answers(lab: il.Lab) -> None:
    task = load_task("test").limited(10)
    schedule = il.Schedule.for_budget("illava", lab.model, keep=0.5)
    seen: list[int] = []
    with il.attach(lab.model, "illava", schedule):
        together = predict(lab, task, batch_size=4, done=seen.append)
        alone = [
            lab.answer([task.image(row.image_id)], [row.question], max_new_tokens=answer_tokens(lab, task))[0]
            for row in task.samples.itertuples()
        ]
    assert together == alone
    assert sum(seen) == len(task) and max(seen) == 4


def test_the_answer_limit_leaves_room_for_a_wrong_word_more(lab: il.Lab) -> None:
    task = load_task("test")
    longest = max(task.samples["answer"], key=lambda text: len(lab.processor.tokenizer.tokenize(text)))
    assert answer_tokens(lab, task) > len(lab.processor.tokenizer.tokenize(longest))


def test_paired_interval_equals_enumeration_of_all_resamples() -> None:
    # Four images with 2, 1, 3 and 2 questions: all 4^4 equally likely resamples can be written down.
    image_ids = ["a", "a", "b", "c", "c", "c", "d", "d"]
    right = np.array([0, 0, 1, 1, 0, 1, 1, 1], dtype=bool)
    baseline = np.array([1, 1, 1, 1, 1, 0, 0, 1], dtype=bool)
    gains, counts = np.array([-2, 0, 0, 1]), np.array([2, 1, 3, 2])
    exact = [gains[list(draw)].sum() / counts[list(draw)].sum() for draw in itertools.product(range(4), repeat=4)]
    found = paired_difference(right, baseline, image_ids)
    assert found.value == pytest.approx(-1 / 8)
    # The distribution has atoms: an end is right when it is a quantile of the exact one, give or take the draw.
    for end, level in ((found.low, 0.025), (found.high, 0.975)):
        assert np.quantile(exact, level - 0.006) <= end <= np.quantile(exact, level + 0.006)
    assert paired_difference(right, baseline, image_ids) == found
    assert paired_difference(right, right, image_ids) == (0, 0, 0)


def test_interval_counts_images_not_questions() -> None:
    draw = np.random.default_rng(1)
    per_image = draw.random(60) < 0.7
    once = paired_difference(per_image, np.ones(60, bool), list(range(60)))
    # The same answer to eight questions about each image is no more evidence than one.
    eight = paired_difference(per_image.repeat(8), np.ones(480, bool), np.arange(60).repeat(8))
    assert eight == pytest.approx(once)
    as_if_independent = paired_difference(per_image.repeat(8), np.ones(480, bool), list(range(480)))
    assert as_if_independent.high - as_if_independent.low < 0.5 * (eight.high - eight.low)


def test_one_image_has_a_difference_but_no_interval() -> None:
    found = paired_difference(np.array([True, False]), np.array([True, True]), ["a", "a"])
    assert found.value == -0.5
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["none", "illava", "fastv"])
def test_answers_do_not_depend_on_the_batch(lab: il.Lab, strategy: str) -> None:
    """Question by question, whatever stands beside it and however much it is padded."""
    task = load_task("test").limited(48)
    with il.attach(lab.model, strategy, il.Schedule.for_budget(strategy, lab.model, keep=0.5)):
        alone, three, sixteen = (predict(lab, task, batch_size) for batch_size in (1, 3, 16))
    assert alone == three == sixteen
