"""What a question is said to be about shows its answer: counted and read from the labels of the tokens alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))  # the scripts there are no package

import onevision
from concepts import KINDS
from scenes import COLORS
from seeking import seek, there

SHOWN_BY = {"word": "kind", "digit": "kind", "shape": "kind", "color": "color", "count": "number"}


@pytest.mark.parametrize("name", ["scene", "fine", "several 4"])
def test_the_tokens_that_a_question_seeks_show_its_answer(name: str) -> None:
    kind, rng = onevision.KIND_OF[name], np.random.default_rng(4)
    seen = set()
    for _ in range(60):
        what = kind.make(rng, "train", False)
        labels = kind.look(what)[1]
        flat = labels.reshape(-1, labels.shape[-1])[kind.shown.source.clip(0)]
        for category in set(kind.categories) & SHOWN_BY.keys():
            question = kind.ask(what, rng, category)
            if question is None or (name.startswith("several") and category == "count"):
                continue  # pictures are counted, not things
            sought = torch.from_numpy(seek([question.text], 2))[None]
            found = there(sought, torch.from_numpy(labels)[None], kind.shown)[0]
            assert not found[1].any()  # room for a second question
            first, last = found[0].numpy()
            assert np.array_equal(first, last)
            shown = {"kind": {KINDS[k] for k in flat[first, 0]}, "number": {str(first.sum())}}
            shown["color"] = {list(COLORS)[c - 1] for c in flat[first, 1]}
            assert shown[SHOWN_BY[category]] == {question.answer}, question
            seen.add(category)
    assert len(seen) == len(set(kind.categories) & SHOWN_BY.keys()) - name.startswith("several")


def test_two_things_are_sought_apart() -> None:
    kind, rng = onevision.KIND_OF["several 3"], np.random.default_rng(5)
    checked = 0
    while checked < 20:
        pictures = kind.make(rng, "train", False)
        question = kind.ask(pictures, rng, "same")
        if question is None:
            continue
        labels = kind.look(pictures)[1]
        sought = torch.from_numpy(seek([question.text], 1))[None]
        found = there(sought, torch.from_numpy(labels)[None], kind.shown)[0, 0]
        flat = torch.from_numpy(labels).flatten(0, 1)[kind.shown.source.clip(0)]
        (first,), (last,) = (flat[where, :2].tolist() for where in found)
        assert (first == last) == (question.answer == "yes"), question
        checked += 1
