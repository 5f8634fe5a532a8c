"""Real files of every awkward kind: converted properly, or refused with a sentence that names them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import illava_lab as il

GRADIENT = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)


def saved(tmp_path, name, image, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    image = il.read_image(saved(tmp_path, "deep.png", deep))
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[..., 0], GRADIENT)


def test_transparency_is_laid_on_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[0, 0] = (255, 0, 0, 255)
    pixels[1, 1] = (0, 0, 0, 128)
    image = np.asarray(il.read_image(saved(tmp_path, "clear.png", Image.fromarray(pixels))))
    assert image[0, 0].tolist() == [255, 0, 0]
    assert image[3, 3].tolist() == [255, 255, 255]
    assert image[1, 1].tolist() == [127, 127, 127]
    palette = Image.fromarray(GRADIENT, "L").convert("P")
    palette.info["transparency"] = 0
    image = np.asarray(il.read_image(saved(tmp_path, "palette.png", palette, transparency=0)))
    assert image[0, 0].tolist() == [255, 255, 255]


def test_cmyk_grey_and_palette_become_rgb(tmp_path):
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    image = il.read_image(saved(tmp_path, "print.jpg", red.convert("CMYK"), quality=95))
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image)[0, 0].astype(int) - [255, 0, 0]).max() < 10
    assert np.array_equal(np.asarray(il.read_image(Image.fromarray(GRADIENT)))[..., 1], GRADIENT)


def test_camera_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4))
    image.putpixel((0, 0), (0, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    read = il.read_image(saved(tmp_path, "photo.png", image, exif=exif))
    assert read.size == (4, 8)
    assert read.getpixel((3, 0)) == (0, 255, 0)


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "green")]
    animated = saved(tmp_path, "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    whole = saved(tmp_path, "whole.jpg", Image.effect_noise((256, 256), 50).convert("RGB"))
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:4000])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for path, says in [
        (animated, r"moving.gif' is animated \(3 frames\)"),
        (tmp_path / "cut.jpg", "cut.jpg' cannot be read: .*truncated"),
        (tmp_path / "text.png", "text.png' is not a picture"),
        (tmp_path / "empty.png", "empty.png' is not a picture"),
        (tmp_path / "nowhere.png", "no image file at .*nowhere.png"),
        (Image.new("F", (4, 4)), "floating-point"),
    ]:
        with pytest.raises(il.LabError, match=says):
            il.read_image(path)
    with pytest.raises(il.LabError, match="an image must be a path, bytes or a PIL image, got int"):
        il.read_image(7)
    assert il.read_image((tmp_path / "whole.jpg").read_bytes()).size == (256, 256)
