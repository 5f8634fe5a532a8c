"""Pictures of odd shapes, in every family: answered, or refused before a processor blows them up."""

from __future__ import annotations

import time
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers.odd_media import SECONDS, refused
from helpers.small_labs import FAMILIES, small_lab
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil, LlavaOnevisionImageProcessorPil

import illava_lab as il
from illava_lab.models.processors import check_shape

BOUNDED = (
    "embedded",
    "next",
    "next-video",
    "internvl",
    "smolvlm",
)  # whatever the shape, their processors make a few squares of it
SLOW = ("next", "next-video", "onevision", "smolvlm", "glm-4.1v")


@pytest.mark.filterwarnings("ignore:this model does not know")
@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FAMILIES])
def test_pictures_of_every_shape_are_answered_or_refused(family):
    lab = small_lab(family)
    for size in [(1, 1), (140, 1), (1, 201), (5000, 1), (1, 60_000)]:
        picture = Image.new("RGB", size, "teal")
        for shown in (picture, [picture, picture]):
            start = time.perf_counter()
            try:
                inputs, said = lab.inputs([shown], ["What is this?"]), ""
            except il.LabError as error:
                said = str(error)
            assert time.perf_counter() - start < 2 * SECONDS, size
            if said:
                assert f"{size[0]} x {size[1]} pixels" in said and said.isprintable()
                assert max(size) > 200 and family not in BOUNDED, said
            elif max(size) <= 201 and shown is picture:
                with torch.no_grad():
                    assert lab.model(**inputs).logits[:, -1].isfinite().all(), size
    mpo = BytesIO()
    Image.new("RGB", (80, 40)).save(mpo, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    for shown in (mpo, np.zeros((30, 40, 3), np.uint8), Image.new("L", (30, 20), 90).convert("I")):
        assert lab.ask(shown, "What is this?", "illava", keep=0.5, max_new_tokens=2).timing.tokens >= 1


def test_the_bound_follows_from_a_processors_own_settings():
    cropping = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    check_shape(cropping, 1, 148)
    assert "would make 336 x 1680000 of it" in refused(check_shape, cropping, 1, 5000)
    assert "would make 1680000 x 336 of it" in refused(check_shape, cropping, 5000, 1)
    check_shape(CLIPImageProcessorPil(size={"shortest_edge": 24}), 1, 5000)
    check_shape(CLIPImageProcessorPil(size={"height": 336, "width": 336}), 1, 60_000)
    check_shape(CLIPImageProcessorPil(size={"shortest_edge": 336}, do_resize=False, do_center_crop=True), 1, 60_000)
    squares, crops = LlavaImageProcessorPil(do_pad=True), LlavaOnevisionImageProcessorPil()
    check_shape(squares, 8064, 6048)  # a phone's picture may be padded, large as it is
    check_shape(crops, 1, 60_000)
    assert "60000 x 60000" in refused(check_shape, squares, 1, 60_000)
    assert "60000 x 60000" in refused(check_shape, crops, 1, 60_000, False)


def test_a_film_three_pixels_high_keeps_its_colours():
    """transformers would take its rows for channels."""
    lab = small_lab("onevision")
    flat, tall = (np.zeros((2, height, 60, 3), np.uint8) for height in (3, 6))
    flat[..., 0] = tall[..., 0] = 255
    pixels = [lab.inputs([il.read_video(film, 2)], ["What?"])["pixel_values_videos"] for film in (flat, tall)]
    torch.testing.assert_close(*pixels)
