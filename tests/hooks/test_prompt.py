"""What lies in a prompt, told on the host from ids and masks alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import IMAGE_TOKEN, VIDEO_TOKEN, shared_llava

import illava_lab as il
from illava_lab.hooks.llm.prompt import placed_images, read_prompt
from illava_lab.models.families import describe
from illava_lab.models.layout import plain_layout
from illava_lab.trace.encoded import untouched

IMAGE, V = IMAGE_TOKEN, VIDEO_TOKEN


@pytest.fixture
def anatomy():
    return describe(shared_llava("onevision"))


def encoded(*slots: int) -> list:
    return [untouched(plain_layout((1, n), (n, 1)), range(i, i + 1)) for i, n in enumerate(slots)]


def test_text_images_and_padding(anatomy):
    ids = torch.tensor([[0, 0, 5, IMAGE, IMAGE, 6, IMAGE, 7], [5, IMAGE, IMAGE, IMAGE, 6, 7, V, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 1, 1]])
    prompt = read_prompt(anatomy, ids, mask, None, None)
    assert prompt.visual.sum() == 7 and prompt.text.sum(1).tolist() == [3, 4]
    assert prompt.taken.sum(1).tolist() == [6, 8], "a visual token that the mask hides is no padding"
    assert prompt.last.tolist() == [7, 7] and prompt.text_at_end == 1 and not prompt.ends_with_image
    images = placed_images(anatomy, prompt, {"image": encoded(2, 1, 3), "video": encoded(1)})
    assert [(image.row, image.at.tolist(), image.text_after) for image in images] == [
        (0, [3, 4], 2), (0, [6], 1), (1, [1, 2, 3], 3), (1, [6], 1),
    ]  # fmt: skip


def test_what_comes_behind_the_prompt_is_neither_text_nor_image(anatomy):
    ids = torch.tensor([[5, IMAGE, IMAGE, 6, 7, IMAGE, 8]])
    prompt = read_prompt(anatomy, ids, None, None, 5)
    assert prompt.visual.sum() == 2 and prompt.text.sum() == 3 and prompt.taken.all()
    assert prompt.last.tolist() == [4] and prompt.text_at_end == 2


@pytest.mark.parametrize(
    ("ids", "mask", "last", "ends", "common"),
    [
        ([[5, 6, IMAGE, IMAGE]], [[1, 1, 1, 1]], [3], True, 0),
        ([[5, IMAGE, 6, 0]], [[1, 1, 1, 0]], [2], False, 0),
        ([[5, IMAGE, IMAGE, 0]], [[1, 1, 1, 0]], [2], True, 0),
        ([[5, 6, 7, 8], [0, IMAGE, 7, 8]], [[1, 1, 1, 1], [0, 1, 1, 1]], [3, 3], False, 2),
    ],
)
def test_where_prompts_end(anatomy, ids, mask, last, ends, common):
    prompt = read_prompt(anatomy, torch.tensor(ids), torch.tensor(mask), None, None)
    assert (prompt.last.tolist(), prompt.ends_with_image, prompt.text_at_end) == (last, ends, common)


@pytest.mark.parametrize("positions", [[[0, 1, 2, 0]], [[[0, 1, 2, 0]], [[0, 0, 0, 0]], [[0, 0, 0, 0]]]])
def test_positions_that_restart_are_refused(anatomy, positions):
    ids = torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(il.LabError, match="row 0 restart after token 2"):
        read_prompt(anatomy, ids, None, torch.tensor(positions), None)
    padded = torch.tensor([[1, 1, 0, 1]])  # what lies at padding tells nothing
    read_prompt(anatomy, ids, torch.tensor([[0, 0, 1, 1]]), padded, None)


def test_beams_repeat_prompts_whose_images_were_encoded_once(anatomy):
    ids = torch.tensor([[5, IMAGE, IMAGE, 6]] * 2 + [[5, IMAGE, 7, 6]] * 2)
    prompt = read_prompt(anatomy, ids, None, None, None)
    images = placed_images(anatomy, prompt, {"image": encoded(2, 1)})
    assert [(image.row, image.encoded.layout.slots) for image in images] == [(0, 2), (1, 2), (2, 1), (3, 1)]
    with pytest.raises(il.LabError, match=r"have 6 places for images, those of this call take \[2, 2\]"):
        placed_images(anatomy, prompt, {"image": encoded(2, 2)})
    assert np.array_equal(prompt.only({"video"}).visual, np.zeros((4, 4), bool))
