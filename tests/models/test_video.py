"""Real films, animations and arrays: the right frames at the right times, or a sentence that says what is wrong."""

from __future__ import annotations

import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

import illava_lab as il
from illava_lab.models.frames import OnevisionFrames, Qwen3Frames, QwenFrames
from illava_lab.models.video import _sample

CONTAINERS = {"mp4": "libx264", "webm": "libvpx", "mkv": "mpeg4", "avi": "mpeg4"}
HEIGHT, WIDTH = 48, 64


def grey(level: int) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), level, np.uint8)


def film(path: Path, levels: list[int], fps: int = 10, codec: str = "libx264") -> Path:
    """A film whose frames are flat greys, so that each can be told from the others."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = WIDTH, HEIGHT, "yuv420p", 4_000_000
        for index, level in enumerate(levels):
            frame = av.VideoFrame.from_ndarray(grey(level), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels_of(video: il.Video) -> list[int]:
    return [round(float(frame.mean())) for frame in video.frames]


# ---------------------------------------------------------------------------------------------- which frames
@pytest.mark.parametrize("container", CONTAINERS)
def test_frames_of_a_film_are_spread_over_its_time(tmp_path, container):
    levels = list(range(20, 240, 11))  # 20 frames, 2 seconds
    path = film(tmp_path / f"film.{container}", levels, codec=CONTAINERS[container])
    video = il.read_video(path, frames=4)
    assert video.frames.shape == (4, HEIGHT, WIDTH, 3) and video.frames.dtype == np.uint8
    # The spans are half a second: the frames at 0.25, 0.75, 1.25 and 1.75 seconds are the 3rd, 8th, 13th and 18th.
    assert levels_of(video) == pytest.approx([levels[i] for i in (2, 7, 12, 17)], abs=4)
    assert video.seconds == pytest.approx((0.2, 0.7, 1.2, 1.7), abs=0.01)
    assert video.duration == pytest.approx(2.0, abs=0.05) and video.fps == pytest.approx(2.0, rel=0.03)
    assert levels_of(il.read_video(str(path), frames=20)) == pytest.approx(levels, abs=4)


def test_an_animation_is_sampled_by_time_not_by_count(tmp_path):
    pictures = [Image.fromarray(grey(level)) for level in (0, 80, 160, 240)]
    for name, options in (("slow.gif", {}), ("slow.webp", {"lossless": True}), ("slow.png", {})):
        path = tmp_path / name
        # The last picture stays for 1.7 of 2 seconds.
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[100, 100, 100, 1700], **options)
        video = il.read_video(path, frames=4)
        assert levels_of(video) == [160, 240, 240, 240] and video.duration == pytest.approx(2.0)
        assert video.seconds == pytest.approx((0.2, 0.3, 0.3, 0.3))


def test_lists_and_arrays(tmp_path):
    levels = [0, 50, 100, 150, 200, 250]
    Image.fromarray(grey(0)).save(tmp_path / "first.png")
    pictures = [tmp_path / "first.png", *(Image.fromarray(grey(level)) for level in levels[1:])]
    stacked = np.stack([grey(level) for level in levels])
    for source in (pictures, stacked):
        video = il.read_video(source, frames=3, fps=2.0)
        assert levels_of(video) == [50, 150, 250] and video.seconds == (0.5, 1.5, 2.5) and video.fps == 1.0


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=40), st.integers(1, 40))
def test_sampling_takes_what_is_shown_in_the_middle_of_equal_spans(durations, frames):
    frames = min(frames, len(durations))
    ends = np.cumsum(durations)
    chosen = _sample([0.0, *ends[:-1]], ends[-1], frames, "film")
    assert chosen == sorted(chosen) and len(chosen) == frames
    for span, index in enumerate(chosen):
        middle = (span + 0.5) * ends[-1] / frames
        assert ends[index] - durations[index] - 1e-9 <= middle <= ends[index] + 1e-9
    assert _sample([i / 3 for i in range(len(durations))], len(durations) / 3, len(durations), "") == list(
        range(len(durations))
    )


def test_a_film_from_a_phone_held_upright_is_read_upright(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    path = tmp_path / "phone.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        picture = grey(30)
        picture[:, : WIDTH // 2] = 220  # stored with the bright half on the left
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    # The track header's matrix says: turn by 90 degrees clockwise to show (ISO/IEC 14496-12, tkhd).
    plain, turned = (struct.pack(">9i", *m) for m in ((1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30),
                                                      (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)))  # fmt: skip
    content = path.read_bytes()
    start = content.index(plain, content.index(b"tkhd"))
    path.write_bytes(content[:start] + turned + content[start + len(turned) :])
    frame = il.read_video(path, frames=1).frames[0]
    assert frame.shape == (WIDTH, HEIGHT, 3)
    top, bottom = frame[: WIDTH // 2].mean(), frame[WIDTH // 2 :].mean()
    assert top > 200 and bottom < 60, "what was left is on top after a clockwise turn"


# ---------------------------------------------------------------------------------------------- what is refused
def test_what_is_no_video_is_refused_by_name(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a film")
    Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
    whole = film(tmp_path / "whole.mp4", list(range(0, 240, 4)))
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:-400])  # mp4 keeps its table of contents at the end
    moving = tmp_path / "moving.gif"
    frames = [Image.effect_noise((64, 64), 90) for _ in range(6)]
    frames[0].save(moving, save_all=True, append_images=frames[1:])
    (tmp_path / "cut.gif").write_bytes(moving.read_bytes()[:9000])
    tall = [Image.new("RGB", (8, 9)), Image.new("RGB", (8, 8))]
    for source, arguments, says in [
        (tmp_path / "none.mp4", {}, "no video file at .*none.mp4"),
        (tmp_path / "empty.mp4", {}, "empty.mp4' is empty"),
        (tmp_path / "text.mp4", {}, "text.mp4' cannot be read as a video: "),
        (tmp_path / "cut.mp4", {}, "cut.mp4' breaks off: 0 of 60 frames are there"),
        (tmp_path / "cut.gif", {"frames": 4}, "cut.gif' cannot be read|frames must be at most"),
        (tmp_path / "still.png", {}, "still.png' is a still picture, not a video"),
        (whole, {"frames": 0}, "frames must be a whole number of at least 1, got 0"),
        (whole, {"frames": 2.0}, "frames must be a whole number of at least 1, got 2.0"),
        (whole, {"frames": 61}, "frames must be at most 60, which is all that .*whole.mp4' has, got 61"),
        ([], {"frames": 1}, "frames must be at most 0, which is all that the list has"),
        (tall, {"frames": 2}, "the frames of the list must be of one size, got 8 x 8 and 8 x 9"),
        ([tmp_path / "none.png"], {"frames": 1}, "no image file"),
        (np.zeros((4, 8, 8), np.uint8), {"frames": 1}, r"a video array must be \(frames, height, width, 3\) of uint8"),
        (np.zeros((4, 8, 8, 3)), {"frames": 1}, "got .* of float64"),
        (np.zeros((4, 8, 8, 3), np.uint8), {"frames": 1, "fps": 0}, "fps must be above 0"),
        (7, {}, "a video must be a path, a list of images or an array, got int"),
    ]:
        with pytest.raises(il.LabError, match=says) as caught:
            il.read_video(source, **arguments)
        assert "\n" not in str(caught.value)


def test_a_film_that_breaks_off_is_not_taken_for_a_shorter_one(tmp_path):
    av = pytest.importorskip("av", reason="PyAV is not installed")
    whole = film(tmp_path / "whole.mp4", [int(level) for level in np.random.default_rng(0).integers(0, 250, 60)])
    moved = tmp_path / "moved.mp4"  # the table of contents first, as films for the web have it
    with av.open(str(whole)) as source, av.open(str(moved), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert len(il.read_video(moved, frames=60)) == 60
    content = moved.read_bytes()
    moved.write_bytes(content[: content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2])
    with pytest.raises(il.LabError, match="moved.mp4' (breaks off|cannot be read)"):
        il.read_video(moved)


def test_without_pyav_a_film_asks_for_it_and_an_animation_works(tmp_path):
    (tmp_path / "film.mp4").write_bytes(b"\0" * 64)
    frames = [Image.fromarray(grey(level)) for level in (0, 250)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    code = (
        "import sys; sys.modules['av'] = None\nimport illava_lab as il\nprint(len(il.read_video('two.gif', frames=2)))\n"
        "try: il.read_video('film.mp4')\nexcept il.LabError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["2", "reading 'film.mp4' needs PyAV: pip install \"illava-lab[video]\""]


def test_a_model_that_takes_no_videos_says_so_and_the_command_line_reads_them(tmp_path, capsys):
    from illava_lab.__main__ import main

    frames = [Image.fromarray(grey(level)) for level in (0, 80, 160, 240)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    says = "is of the family 'llava', which takes no videos; those that do: llava_onevision, qwen2_vl, qwen2_5_vl"
    with pytest.raises(il.LabError, match=f"embedded {says}"):
        il.load().ask(il.read_video(tmp_path / "moving.gif", frames=2), "What happens?")
    assert main(["ask", str(tmp_path / "moving.gif"), "What happens?", "--frames", "2"]) == 2
    assert says in capsys.readouterr().err
    assert main(["ask", str(tmp_path / "moving.gif"), "What happens?"]) == 2
    assert "frames must be at most 4" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- pixels
def test_qwen_patches_hold_the_pixels_of_two_frames():
    frames = np.random.default_rng(0).integers(0, 256, (5, 56, 84, 3), dtype=np.uint8)
    made = QwenFrames(min_pixels=28 * 28, max_pixels=10**6, image_mean=[0.5] * 3, image_std=[0.25] * 3)([frames])
    assert made["video_grid_thw"].tolist() == [[3, 4, 6]]
    wanted = torch.from_numpy((frames / 255 - 0.5) / 0.25).float()
    wanted = torch.cat([wanted, wanted[-1:]])  # the last frame fills the last pair
    rows = iter(made["pixel_values_videos"])
    for time in range(3):
        for block_row in range(2):
            for block_column in range(3):
                for inner_row in range(2):
                    for inner_column in range(2):
                        top, left = 14 * (2 * block_row + inner_row), 14 * (2 * block_column + inner_column)
                        pixels = wanted[2 * time : 2 * time + 2, top : top + 14, left : left + 14]
                        # channel, frame, row, column
                        torch.testing.assert_close(next(rows), pixels.permute(3, 0, 1, 2).flatten(), atol=1e-5, rtol=0)


@given(
    st.integers(2, 40), st.integers(1, 900), st.integers(1, 900), st.sampled_from([(4096, 25165824), (131072, 786432)])
)
@hypothesis_settings(deadline=None)
def test_frames_of_qwen3_are_as_large_as_transformers_makes_them(count, height, width, bounds):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    least, most = bounds
    if max(height, width) > 200 * min(height, width):
        return
    frames = Qwen3Frames(size={"shortest_edge": least, "longest_edge": most})
    assert frames._fitted(count, height, width) == smart_resize(count, height, width, 2, 32, least, most)


def test_frames_equal_those_of_the_real_video_processors():
    try:
        from torchvision.transforms.v2 import functional  # noqa: F401
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not work here, and the real video processors need it: {error}")
    from skimage import data
    from transformers import LlavaOnevisionVideoProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    picture = data.astronaut()
    frames = np.stack([np.roll(picture, 20 * i, axis=1)[:360, :480] for i in range(5)])
    half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    for ours, theirs, settings in [
        (OnevisionFrames, LlavaOnevisionVideoProcessor, {}),
        (OnevisionFrames, LlavaOnevisionVideoProcessor, dict(size={"height": 384, "width": 384}, **half)),
        (QwenFrames, Qwen2VLVideoProcessor, {}),
        (QwenFrames, Qwen2VLVideoProcessor, dict(min_pixels=3136, max_pixels=100_000, **half)),
        (Qwen3Frames, Qwen3VLVideoProcessor, {}),
        (Qwen3Frames, Qwen3VLVideoProcessor, dict(size={"shortest_edge": 4096, "longest_edge": 200_000})),
    ]:
        got, want = (
            ours(**settings)([frames]),
            theirs(**settings)([frames], return_tensors="pt", do_sample_frames=False),
        )
        assert set(want) <= set(got)
        difference = (got["pixel_values_videos"] - want["pixel_values_videos"]).abs()
        # The two libraries round the resized pixels differently, by one or two of 255 grey levels and seldom.
        assert difference.mean() < 2e-4 and difference.max() < 0.035
        if "video_grid_thw" in want:
            assert torch.equal(got["video_grid_thw"], want["video_grid_thw"])
