"""Chapter 08: its checks name what is wrong, and its figures and tables say what was measured."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.checks import each_was_tried, says_what_is_wrong
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

import illava_lab as il
from illava_lab.course import checks_several, several
from illava_lab.course.checks_several import check_changes, check_every_second, check_share_out
from illava_lab.measuring.difference import answered_right, keep_answers
from illava_lab.method import frame_of
from illava_lab.method.tokens import Tokens
from illava_lab.trace.sources import Sources


def scoring(rule) -> type[il.Scorer]:
    """A strategy for films with these scores."""

    class Rule(il.Scorer):
        """Of an exercise."""

        name, stages, media, first_llm_layer = "rule", ("llm",), ("video",), 0

        def score(self, tokens: Tokens):
            return rule(tokens)

    return Rule


def share(scores: Tensor, total: int, least: int = 1, descending: bool = True) -> Tensor:
    best = scores.flatten().argsort(descending=descending)[:total] // scores.shape[1]
    return torch.bincount(best, minlength=len(scores)).clamp(min=least)


def changes(x: Tensor) -> Tensor:
    return 1 - cosine_similarity(x[1:], x[:-1], dim=-1)


# check, answer, what the message must name (None: it is right)
ANSWERS = [
    (check_changes, changes, None),
    (check_changes, lambda x: ..., "nothing is returned yet"),
    (check_changes, lambda x: 1 - changes(x), "that is the cosine"),
    (check_changes, lambda x: 1 - (x[1:] * x[:-1]).sum(-1), "divide by both lengths"),
    (check_changes, lambda x: 1 - cosine_similarity(x[1:], x[:1], dim=-1), "not with the first"),
    (check_changes, lambda x: 1 - normalize(x, dim=-1) @ normalize(x, dim=-1).mT, "shape must be (2, 2)"),
    (check_every_second, scoring(lambda tokens: -(frame_of(tokens) % 2)), None),
    (check_every_second, scoring(lambda tokens: ...), "nothing is returned yet"),
    (check_every_second, scoring(lambda tokens: frame_of(tokens) % 2), "frame 0 should stay"),
    (check_every_second, scoring(lambda tokens: -(torch.arange(tokens.count) % 2)[None]), "every second *token*"),
    (check_every_second, scoring(lambda tokens: -frame_of(tokens)), "half of the tokens must be"),
    (check_every_second, scoring(lambda tokens: -(torch.arange(4) % 2)[None]), "one number for each token"),
    (check_every_second, 3, "a class is expected"),
    (check_share_out, share, None),
    (check_share_out, lambda scores, total: ..., "nothing is returned yet"),
    (check_share_out, lambda scores, total: torch.full((len(scores),), total // len(scores)), "an equal share"),
    (check_share_out, lambda scores, total: share(scores, total, descending=False), "not the lowest"),
    (check_share_out, lambda scores, total: share(scores, total, least=0), "one token at least"),
    (check_share_out, lambda scores, total: share(scores, total)[:2], "shape must be (3,)"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "answer", "fault"), ANSWERS, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(ANSWERS)])  # fmt: skip
def test_checks_name_the_fault(check, answer, fault: str | None) -> None:
    says_what_is_wrong(check(answer), fault)


def test_every_check_was_tried_with_three_wrong_answers_and_an_empty_one() -> None:
    each_was_tried(ANSWERS, checks_several)


def test_one_list_for_all_pictures_leaves_more_of_those_with_higher_scores() -> None:
    scores = torch.tensor([[9.0, 8.0, 7.0, 1.0], [6.0, 2.0, 0.5, 0.4], [0.3, 0.2, 0.1, 0.0]])
    assert several.one_list(scores, 6) == [4, 2, 1] == share(scores, 6).tolist()


def test_a_frame_shows_what_stands_in_it_what_went_elsewhere_and_what_is_gone() -> None:
    weights = torch.zeros(2, 8, dtype=torch.float64)  # two frames of 2 x 2 patches
    weights[0, [0, 4]] = 0.5  # a patch of frame 1 has joined the one at its place in frame 0
    weights[1, 7] = 1.0
    sources = Sources(weights, torch.tensor([0, 7]), (2, 2), torch.zeros(8, 4))
    assert several.left_in_frames(sources) == [1, 1]
    drawn = several._fate(Image.new("RGB", (2, 2), (200, 100, 100)), sources, 1)
    joined, gone, stays = (drawn[y, x].tolist() for y, x in ((5, 5), (5, 30), (40, 40)))
    assert stays == [200, 100, 100] and joined[2] > joined[0] and len(set(gone)) == 1


def test_kinds_are_compared_on_their_own_questions() -> None:
    task = il.load_task("test").limited(8)
    table = pd.DataFrame(
        {"strategy": ["none", "illava", "fastv"], "keep": [1.0, np.nan, np.nan], "flops": [np.nan, 0.9, 0.9]}
    ).assign(preset=None, schedule=None, status="ok")
    every, no_words = np.ones(len(task), bool), (task.samples["category"] != "word").to_numpy()
    keep_answers(table, {"none keep 1": every, "illava FLOPs 0.9": every, "fastv FLOPs 0.9": no_words}, task, seed=0)
    assert answered_right(table, "fastv FLOPs 0.9").tolist() == no_words.tolist()
    found = several.kinds_table(table, task, "fastv FLOPs 0.9", "none")
    assert found["questions"].sum() == len(task)
    assert {kind: points for kind, points in found["points"].items() if points} == {"word": -100.0}
    question, said, other = several.failure(il.load(), table, task, ["fastv"], "illava", ["count", "word"], flops=0.9)
    assert question["category"] == "word" and (said.strategy, other.strategy) == ("fastv", "illava")
