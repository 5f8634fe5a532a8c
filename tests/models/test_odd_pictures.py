"""Odd pictures, films and names: each is read as it is seen, or refused in one line, soon."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from importlib.util import find_spec
from io import BytesIO, StringIO

import numpy as np
import pytest
import torch
from helpers import odd_media
from helpers.films import film
from helpers.odd_media import refused
from PIL import Image

import illava_lab as il
from illava_lab.__main__ import main
from illava_lab.models.images import FORMATS

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)


def grey(image: Image.Image) -> list[list[int]]:
    return np.asarray(image)[..., 0].tolist()


def png(width: int, height: int, bits: int, color: int, rows: bytes = b"", clear: bytes = b"") -> bytes:
    """A PNG by hand: Pillow writes only some of what may stand in one."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))]
    chunks += [(b"tRNS", clear)] * bool(clear) + [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# ---------------------------------------------------------------------------------------------- by the hundred
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("sort", "count"), [("whole", 300), ("damaged", 900), ("films", 600)])
def test_odd_media_is_read_or_refused_in_one_line(sort, count, tmp_path):
    seed = int(os.environ.get("ODD_SEED", "0"))
    assert not list(odd_media.faults(sort, seed, count, tmp_path))


# ---------------------------------------------------------------------------------------------- pictures
def test_of_a_phones_two_pictures_the_first_is_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to show
    photo = Image.new("RGB", (64, 32), "blue")
    photo.paste("red", (0, 0, 32, 32))
    path = tmp_path / "IMG_0001.jpg"
    photo.save(path, "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))], exif=exif.tobytes(), quality=95)
    with Image.open(path) as opened:
        assert opened.format == "MPO" and opened.n_frames == 2
        assert il.read_image(opened).size == (32, 64)
    read = np.asarray(il.read_image(path)).astype(int)
    assert read.shape == (64, 32, 3) and read[5, 5, 0] > 200 and read[60, 5, 2] > 200
    assert "is a still picture" in refused(il.read_video, path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_is_upright_by_name_as_by_content(tmp_path, orientation):
    """Pillow 13 maps an uncompressed one into memory with its sides swapped."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise = np.random.default_rng(0).integers(0, 256, (6, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "scan.tif", exif=exif)
    shown = {1: noise, 2: noise[:, ::-1], 3: noise[::-1, ::-1], 4: noise[::-1], 5: noise.T, 6: noise[::-1].T, 7: noise[::-1, ::-1].T, 8: noise[:, ::-1].T}[orientation]  # fmt: skip
    for source in (tmp_path / "scan.tif", (tmp_path / "scan.tif").read_bytes(), Image.open(tmp_path / "scan.tif")):
        assert grey(il.read_image(source)) == shown.tolist()


def test_wide_numbers_are_as_they_are_seen(tmp_path):
    flat = Image.fromarray(LEVELS)
    for mode in ("I", "I;16"):
        assert grey(il.read_image(flat.convert(mode))) == LEVELS.tolist(), "8-bit values"
        assert grey(il.read_image(Image.fromarray(LEVELS.astype(np.int32) * 257).convert(mode))) == LEVELS.tolist()
    flat.convert("I").save(tmp_path / "wide.tif")
    assert grey(il.read_image(tmp_path / "wide.tif")) == LEVELS.tolist()
    Image.fromarray(LEVELS.astype(np.uint16)).save(tmp_path / "dark.png")
    assert max(map(max, grey(il.read_image(tmp_path / "dark.png")))) == 1, "this file says that it has 16 bits"
    for values, span in ((np.int32([[-1, 5]]), "from -1 to 5"), (np.int32([[0, 70_000]]), "from 0 to 70000")):
        assert f"{span}, whose range is not known" in refused(il.read_image, Image.fromarray(values))
    assert "floating-point" in refused(il.read_image, flat.convert("F"))


def test_what_a_png_declares_transparent_is_white_in_every_depth():
    for data, shown in [
        (png(2, 1, 16, 0, b"\0\x12\x34\x00\x00", clear=b"\x12\x34"), [255, 0]),
        (png(2, 1, 16, 0, b"\0\x12\x34\x00\x00", clear=b"\x00\x12"), [18, 0]),
        (png(2, 1, 4, 0, b"\0\x50", clear=b"\0\x05"), [255, 0]),
        (png(4, 1, 2, 0, b"\0\x1b", clear=b"\0\x02"), [0, 85, 255, 255]),
        (png(2, 1, 1, 0, b"\0\x40", clear=b"\0\x00"), [255, 255]),
        (png(2, 1, 8, 0, b"\0\x05\x06", clear=b"\0\x05"), [255, 6]),
        (png(2, 1, 16, 2, b"\0" + b"\x12\x34" * 3 + b"\0" * 6, clear=b"\x12\x34" * 3), [255, 0]),
    ]:
        assert grey(il.read_image(data)) == [shown]
    assert grey(il.read_image(Image.new("La", (2, 1), (0, 0)))) == [[255, 255]]


def test_arrays_and_open_files_are_taken(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path, stream = tmp_path / "noise.png", BytesIO()
    Image.fromarray(pixels).save(path)
    Image.fromarray(pixels).save(stream, "PNG")  # and stands at its end now
    with path.open("rb") as opened:
        for source in (pixels, torch.from_numpy(pixels), opened, stream, bytearray(path.read_bytes()), path):
            assert np.array_equal(np.asarray(il.read_image(source)), pixels)
    assert np.array_equal(np.asarray(il.read_image(pixels[::-1, ::2])), pixels[::-1, ::2])
    three = np.stack([pixels] * 3)
    assert np.array_equal(il.read_video(torch.from_numpy(three), frames=3).frames, three)
    for source, says in [
        (pixels / 255, r"got (5, 7, 3) of float64, whose range is not known"),
        (torch.rand(5, 7, 3, dtype=torch.bfloat16), r"got (5, 7, 3) of bfloat16, whose range is not known"),
        (pixels.transpose(2, 0, 1), r"an image array must be (height, width, 3) of uint8, got (3, 5, 7) of uint8"),
        (pixels[:0], "which has no pixels"),
        (torch.zeros(5, 7, 3, dtype=torch.uint8, device="meta"), "on the device 'meta'"),
        (StringIO("x"), "must be opened in binary mode"),
        (opened, "cannot be read: I/O operation on closed file"),
        ({"image": pixels}, "got dict"),
    ]:
        assert says in refused(il.read_image, source)


@pytest.mark.filterwarnings("ignore:Image size")
def test_too_large_too_small_closed_and_cut(tmp_path):
    Image.effect_noise((256, 256), 50).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    closed = Image.open(BytesIO(data))
    closed.close()
    with Image.open(BytesIO(data)) as left:
        pass
    bmp = struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 65535, 65535, 1, 24, 0, 0, 0, 0, 0, 0)
    gif = struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    for source, says in [
        (Image.new("RGB", (0, 5)), "has no pixels: it is 0 x 5"),
        (Image.new("RGB", (0, 0)), "has no pixels: it is 0 x 0"),
        (png(0, 5, 8, 0), "the image"),
        (png(20_000, 20_000, 8, 0), "400000000 pixels; at most 128 million are read"),
        (png(12_000, 12_000, 8, 0), "12000 x 12000 pixels, which are 144 million; at most 128 million are read"),
        (png(65_535, 65_535, 8, 0), "at most 128 million"),
        (b"BM" + bmp, "at most 128 million"),
        (b"GIF89a" + gif + b"\x02\x02\x4c\x01\x00;", "at most 128 million"),
        (closed, "the image was closed before it was read"),
        (left, "the image was closed before it was read"),
        (Image.open(BytesIO(data[:4000])), "the image cannot be read: image file is truncated"),
    ]:
        assert says in refused(il.read_image, source)


def test_no_reader_starts_another_program(tmp_path, monkeypatch):
    """A stand-in for Ghostscript notes whether it was started."""
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    assert shutil.which("gs") == str(script)
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    (tmp_path / "photo.png").write_bytes(page)
    for source in (tmp_path / "photo.png", page, BytesIO(page)):
        assert "is not a picture in a format that can be read" in refused(il.read_image, source)
    if find_spec("av"):
        assert "is not a video in a format that can be read" in refused(il.read_video, tmp_path / "photo.png")
    assert not (tmp_path / "started").exists() and not {"EPS", "WMF", "IPTC", "MPEG"} & set(FORMATS)


# ---------------------------------------------------------------------------------------------- names
NAMES = [
    "a" * 300 + ".png", "data:image/png;base64," + "A" * 100_000, "two\nlines.png", "\x1b[31mred\x1b[2J.png",
    "nul\0.png", "", "\ud800.png", "\u202egnp.exe", "x/" * 3000, "https://example.org/cat.png", "/", "/dev/null",
]  # fmt: skip


def test_odd_names_are_shown_quoted_on_one_line(tmp_path, capsys):
    lab = il.load()
    for name in NAMES:
        for read in (il.read_image, il.read_video, lambda name: lab.ask(name, "What?")):
            said = refused(read, name)
            assert "file at '" in said and (len(name) > 200 or repr(name) in said)
        if "\0" in name or "\ud800" in name:  # which no command line can hand over
            continue
        for words in (("ask", name, "What?"), ("bench", "--image", name), ("compare", "--task", name or "?"), ("ask", __file__, "What?", "--model", name or "?")):  # fmt: skip
            assert main(words) == 2
            line = capsys.readouterr().err
            assert line.endswith("\n") and line[:-1].isprintable() and len(line) < 700
    odd = tmp_path / "\x1b[31mred\nsecond.png"
    odd.write_bytes(b"no picture")
    for read in (il.read_image, il.read_video):
        assert repr(str(odd)) in refused(read, odd)
    Image.new("RGB", (3, 2)).save(odd, "PNG")
    assert il.read_image(odd).size == (3, 2) and repr(str(odd)) in refused(il.read_video, odd)


def test_no_labs_error_lets_a_terminal_obey_a_name():
    assert str(il.LabError("folder \x1b]0;title\x07 and\u202e\nsecond line")) == (
        "folder \\x1b]0;title\\x07 and\\u202e\nsecond line"
    )


# ---------------------------------------------------------------------------------------------- films
def test_a_film_that_is_cut_is_refused_where_its_container_can_tell(tmp_path):
    pytest.importorskip("av", reason="PyAV is not installed")
    for suffix, codec in {"mkv": "mpeg4", "webm": "libvpx", "avi": "mpeg4", "mpg": "mpeg1video", "flv": "flv1", "wmv": "wmv2"}.items():  # fmt: skip
        path = film(tmp_path / f"film.{suffix}", list(range(20, 240, 4)), codec)
        assert len(il.read_video(path)) == 8
        data = path.read_bytes()
        for share in (0.95, 0.6, 0.3):
            path.write_bytes(data[: int(share * len(data))])
            assert "breaks off" in refused(il.read_video, path), suffix


def test_a_film_with_a_latin_title_and_a_name_like_a_protocol_is_read(tmp_path, monkeypatch):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    plain = film(tmp_path / "plain.mp4", [40, 200], "libx264")
    titled = tmp_path / "pipe:0"
    with av.open(str(plain)) as source, av.open(str(titled.absolute()), "w", format="mp4") as target:
        target.metadata["title"] = "Caf\N{LATIN SMALL LETTER E WITH ACUTE}!"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    titled.write_bytes(titled.read_bytes().replace("Caf\xe9!".encode(), b"Caf\xe9 !"))
    monkeypatch.chdir(tmp_path)
    assert np.array_equal(il.read_video("pipe:0", frames=2).frames, il.read_video(plain, frames=2).frames)


def test_frames_and_rates_that_cannot_be_are_refused(tmp_path):
    flat = np.zeros((4, 6, 8, 3), np.uint8)
    for fps in (float("inf"), float("nan"), -1, 5e-324, 1e308, "3", None, True, 10**400):
        assert refused(il.read_video, flat, 2, fps).startswith("fps must be above 0")
    assert il.read_video(flat, np.int64(2), np.float32(2.0)).duration == 2.0
    for source in (flat[:, :0], flat[:, :, :0], flat.astype(np.float32), flat[..., :1]):
        assert "a video array must be (frames, height, width, 3) of uint8, got" in refused(il.read_video, source, 2)
    huge = np.broadcast_to(np.zeros((1, 1, 1, 3), np.uint8), (60, 4320, 7680, 3))
    assert "take at most 30" in refused(il.read_video, huge, 60)
    assert "at most 33 million are read" in refused(il.read_video, np.broadcast_to(huge[:1, :1], (2, 9000, 7680, 3)), 2)
    pages = BytesIO()
    dot = Image.new("L", (1, 1))
    dot.save(pages, "TIFF", save_all=True, append_images=[dot] * 1500)
    assert "is animated (more than 100 frames)" in refused(il.read_image, pages)
    bomb = [Image.effect_noise((50, 50), 90) for _ in range(2)]
    bomb[0].save(tmp_path / "bomb.gif", save_all=True, append_images=bomb[1:])
    data = (tmp_path / "bomb.gif").read_bytes()
    (tmp_path / "bomb.gif").write_bytes(data[:6] + struct.pack("<HH", 9000, 9000) + data[10:])
    assert "a frame of" in refused(il.read_video, tmp_path / "bomb.gif", 2)
