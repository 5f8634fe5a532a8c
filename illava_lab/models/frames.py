"""Frames of videos as model inputs, through PIL-backed image processors: the stand-ins for video processors.

Pixels are the same whether torchvision is installed or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor
from transformers import (
    BatchFeature,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ChannelDimension,
)
from transformers.video_utils import VideoMetadata

from illava_lab.errors import LabError

LAST = ChannelDimension.LAST
"""Of frames; transformers would guess, and take one that is 3 pixels high for three channels."""


class _Frames:
    """Prepares videos with the settings of a checkpoint's video processor, frame by frame, through an image processor.

    The second base class is a PIL-backed image processor. Frames are taken as they come: sampling is the work of
    `read_video`.
    """

    valid_kwargs: Any  # of the image processor

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        known = self.valid_kwargs.__annotations__
        super().__init__(**{name: value for name, value in settings.items() if name in known and value is not None})

    def __call__(
        self,
        videos: Sequence[np.ndarray],
        video_metadata: Sequence[VideoMetadata] | None = None,
        return_metadata: bool = False,
        **_: Any,
    ) -> BatchFeature:
        """Model inputs of several videos, each (frames, height, width, 3) in 8 bits."""
        data: dict[str, Any] = dict(self.prepare([list(video) for video in videos]))
        if return_metadata:
            data["video_metadata"] = video_metadata or [VideoMetadata(len(video)) for video in videos]
        return BatchFeature(data)

    def prepare(self, videos: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """Model inputs of the frames of several videos, by name."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The settings as the checkpoint had them, so that transformers' own class can read what is saved."""
        return dict(self.settings)


class _SquareFrames(_Frames):
    """Every frame is one square picture, without crops."""

    model_input_names: ClassVar = ["pixel_values_videos"]
    preprocess: Any  # of the image processor

    def prepare(self, videos: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """pixel_values_videos (videos, frames, 3, height, width).

        Raises:
            LabError: videos with different numbers of frames, which the model cannot take in one batch.
        """
        lengths = {len(frames) for frames in videos}
        if len(lengths) > 1:
            raise LabError(f"videos of one batch need equally many frames, got {sorted(lengths)}")
        pixels = [np.stack(self.preprocess(frames, input_data_format=LAST)["pixel_values"]) for frames in videos]
        return {"pixel_values_videos": torch.from_numpy(np.stack(pixels).astype(np.float32))}


class OnevisionFrames(_SquareFrames, SiglipImageProcessorPil):
    """LLaVA-OneVision: a frame is resized to a square."""

    resample = Resampling.BICUBIC
    image_mean, image_std = OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
    size: ClassVar = {"height": 384, "width": 384}
    do_convert_rgb = True


class NextFrames(_SquareFrames, CLIPImageProcessorPil):
    """LLaVA-NeXT-Video: a frame is its middle square, by CLIP's defaults."""


class SmolFrames(_SquareFrames, SiglipImageProcessorPil):
    """SmolVLM: only there to be asked for these two numbers; the lab gives it no videos."""

    num_frames = 64
    fps = 1


class QwenFrames(_Frames, Qwen2VLImageProcessorPil):
    """Qwen2-VL and Qwen2.5-VL: consecutive frames share a patch, `temporal_patch_size` (2) of them."""

    model_input_names: ClassVar = ["pixel_values_videos", "video_grid_thw"]
    size: ClassVar = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28}

    def prepare(self, videos: list[list[np.ndarray]]) -> dict[str, Tensor]:
        """Pixels and grids of all videos.

        Returns:
            pixel_values_videos (patches of all videos, 3 * frames a patch * patch * patch), video_grid_thw (videos, 3).
        """
        patches, grids = zip(*(self._patches(frames) for frames in videos), strict=True)
        return {"pixel_values_videos": torch.cat(patches), "video_grid_thw": torch.tensor(grids)}

    def _patches(self, frames: list[np.ndarray], **options: Any) -> tuple[Tensor, list[int]]:
        together = self.temporal_patch_size
        frames = frames + frames[-1:] * (-len(frames) % together)
        single = self.preprocess(frames, temporal_patch_size=1, return_tensors="pt", input_data_format=LAST, **options)
        _, rows, columns = single["image_grid_thw"][0].tolist()
        times = len(frames) // together
        # (time, frame, patch, channel, pixel) -> the frames of a patch go between its channel and its pixels
        split = single["pixel_values"].view(times, together, rows * columns, 3, -1)
        return split.permute(0, 2, 3, 1, 4).reshape(times * rows * columns, -1), [times, rows, columns]


class Qwen3Frames(QwenFrames):
    """Qwen3-VL and Qwen3.5: bounds are those of the pixels of all frames together, and the prompt says their times."""

    size: ClassVar = {"shortest_edge": 128 * 32 * 32, "longest_edge": 768 * 32 * 32}
    patch_size = 16
    image_mean, image_std = IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

    def _patches(self, frames: list[np.ndarray], **options: Any) -> tuple[Tensor, list[int]]:
        if self.do_resize:
            size = self._fitted(len(frames), *frames[0].shape[:2])
            frames = [np.asarray(Image.fromarray(frame).resize(size[::-1], self.resample)) for frame in frames]
        return super()._patches(frames, do_resize=False, **options)

    def _fitted(self, count: int, height: int, width: int) -> tuple[int, int]:
        """(height, width) in whole visual tokens, near to the proportions of the frames and within the bounds."""
        edge, (least, most) = self.patch_size * self.merge_size, self._bounds(count)
        if (short := min(height, width)) < edge:
            height, width = int(height * (edge / short)), int(width * (edge / short))
        size = round(height / edge) * edge, round(width / edge) * edge
        pixels = round(count / self.temporal_patch_size) * self.temporal_patch_size * size[0] * size[1]
        if pixels > most:
            by = math.sqrt(count * height * width / most)
            return max(1, math.floor(height / by / edge)) * edge, max(1, math.floor(width / by / edge)) * edge
        if pixels < least:
            by = math.sqrt(least / (count * height * width))
            return math.ceil(height * by / edge) * edge, math.ceil(width * by / edge) * edge
        return size

    def _bounds(self, count: int) -> tuple[int, int]:
        """The fewest and the most pixels of all frames; a checkpoint may bound those of one frame besides."""
        least, most = self.size["shortest_edge"], self.size["longest_edge"]
        if self.settings.get("cap_pixels_per_frame"):
            cap = self.settings.get("max_video_tokens", 768) * (self.patch_size * self.merge_size) ** 2
            most = count * max(min(cap, most // count), int(least * 1.05))
        return least, most


# transformers model_type -> what prepares its videos. A family that is not here takes no videos. To InternVL, frames
# are pictures, each behind its number.
FRAMES: dict[str, type[_Frames]] = {
    "llava_onevision": OnevisionFrames,
    "qwen2_vl": QwenFrames,
    "qwen2_5_vl": QwenFrames,
    "internvl": OnevisionFrames,
    "llava_next_video": NextFrames,
    "qwen3_vl": Qwen3Frames,
    "qwen3_vl_moe": Qwen3Frames,
    "qwen3_5": Qwen3Frames,
    "qwen3_5_moe": Qwen3Frames,
}

# Processors that need a stand-in to be built. SmolVLM's and GLM's would write the times of frames into the prompt.
STAND_INS: dict[str, type[_Frames]] = {**FRAMES, "smolvlm": SmolFrames, "glm4v": QwenFrames, "glm46v": QwenFrames}


def check_takes_videos(config: PreTrainedConfig, source: str) -> None:
    """Refuse videos for a family that takes none.

    Raises:
        LabError: names the families that do.
    """
    if config.model_type not in FRAMES:
        names = ", ".join(FRAMES)
        raise LabError(
            f"{source} is of the family {config.model_type!r}, which takes no videos; those that do: {names}"
        )
