"""Processors that need no torchvision: images and video frames both go through the PIL-backed image processors.

transformers prepares videos with torchvision only, and without it `LlavaOnevisionProcessor` and `InternVLProcessor`
cannot even be built. Here a stand-in takes the place of their video processors. Pixels are the same whether torchvision
is installed or not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL.Image import Resampling
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BatchFeature,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, ChannelDimension

# In 5.6 and 5.17 the name at the top of transformers stands for a class that asks for torchvision; this one does not.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.video_utils import VideoMetadata

from illava_lab.errors import LabError
from illava_lab.models.folder import read_json

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

    def _patches(self, frames: list[np.ndarray]) -> tuple[Tensor, list[int]]:
        together = self.temporal_patch_size
        frames = frames + frames[-1:] * (-len(frames) % together)
        single = self.preprocess(frames, temporal_patch_size=1, return_tensors="pt", input_data_format=LAST)
        _, rows, columns = single["image_grid_thw"][0].tolist()
        times = len(frames) // together
        # (time, frame, patch, channel, pixel) -> the frames of a patch go between its channel and its pixels
        split = single["pixel_values"].view(times, together, rows * columns, 3, -1)
        return split.permute(0, 2, 3, 1, 4).reshape(times * rows * columns, -1), [times, rows, columns]


# transformers model_type -> what prepares its videos. A family that is not here takes no videos.
FRAMES: dict[str, type[_Frames]] = {
    "llava_onevision": OnevisionFrames,
    "qwen2_vl": QwenFrames,
    "qwen2_5_vl": QwenFrames,
    "llava_next_video": NextFrames,
}

# Processors that need a stand-in to be built. To InternVL and SmolVLM, frames are images, and SmolVLM, Qwen3-VL and
# GLM-4.1V write the times of frames into their prompts; the lab takes no videos for them.
STAND_INS: dict[str, type[_Frames]] = {
    **FRAMES,
    "internvl": OnevisionFrames,
    "qwen3_vl": QwenFrames,
    "smolvlm": SmolFrames,
    "glm4v": QwenFrames,
}


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


MOST_PREPARED = 2**24
"""Pixels of a picture while it is prepared, if it has fewer than half of them itself: done in half a second."""
LONGEST = 200
"""Of Qwen's processors: how many times longer than the other one edge of a picture may be."""


def check_shape(processor: Any, width: int, height: int, alone: bool = True, what: str = "an image") -> None:
    """Refuse a picture, or a frame of a video, that a processor cannot prepare, or blows up while it does.

    A processor that gives the shorter edge a size before it crops makes 336 x 1,680,000 pixels of 1 x 5,000.

    Args:
        processor: of the model, or its image processor.
        alone: it is the only picture of its prompt (LLaVA-OneVision makes crops of that, and squares of several).
        what: "an image" or "a frame".

    Raises:
        LabError: names the size, and what would be made of it.
    """
    settings = getattr(processor, "image_processor", processor)
    shown = f"{what} of {width} x {height} pixels (width x height) is too long and narrow for this model"
    if hasattr(settings, "merge_size") and max(width, height) > LONGEST * min(width, height):
        raise LabError(f"{shown}: the longer edge may be at most {LONGEST} times the shorter one")
    wide, high = _prepared(settings, width, height, alone)
    if wide * high > max(MOST_PREPARED, 2 * width * height):
        raise LabError(
            f"{shown}: its processor would make {wide} x {high} of it before it crops, and at most "
            f"{MOST_PREPARED // 10**6} million pixels are prepared"
        )


def _prepared(settings: Any, width: int, height: int, alone: bool) -> tuple[int, int]:
    """(width, height) of the largest picture that an image processor makes of one, before it cuts it."""
    anyres = getattr(settings, "image_grid_pinpoints", None) is not None
    if hasattr(settings, "pad_to_square") and (not alone if anyres else settings.do_pad):
        width = height = max(width, height)
    elif anyres or hasattr(settings, "merge_size"):
        return width, height  # the crops together have one of a few sizes; Qwen's settings bound the pixels
    size = settings.size or {}
    edge = getattr(size, "shortest_edge", None) or (size.get("shortest_edge") if isinstance(size, dict) else None)
    if not settings.do_resize or edge is None:
        return width, height
    short = min(width, height)
    return max(width, width * edge // short), max(height, height * edge // short)


# No code of a checkpoint is run or offered to be run: without the first, transformers would ask the person.
_LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def load_processor(folder: Path, config: PreTrainedConfig) -> ProcessorMixin:
    """The processor of a checkpoint's folder, with PIL-backed image processors."""
    with _without_number_words(config):
        return _without_torchvision(config).from_pretrained(folder, **_LOCAL)


@contextmanager
def _without_number_words(config: PreTrainedConfig) -> Iterator[None]:
    """SmolVLM's processor is not made without the package num2words, which spells how many frames a video has."""
    module: Any = sys.modules[PROCESSOR_MAPPING[type(config)].__module__]
    missing = getattr(module, "num2words", str) is None
    if missing:
        module.num2words = str
    try:
        yield
    finally:
        if missing:
            module.num2words = None


def build_processor(
    config: PreTrainedConfig, settings: dict[str, Any], tokenizer: Any, chat_template: str
) -> ProcessorMixin:
    """A processor from the contents of its processor_config.json, without any file.

    Args:
        settings: as saved by transformers, with `image_processor` and, where the family takes videos,
            `video_processor`.
    """
    settings = {name: value for name, value in settings.items() if name != "processor_class"}
    image = dict(settings.pop("image_processor"))
    parts = {"image_processor": _pil_class(image.pop("image_processor_type"))(**image), "tokenizer": tokenizer}
    if config.model_type in STAND_INS:
        cls = _without_torchvision(config)
        parts["video_processor"] = STAND_INS[config.model_type](**settings.pop("video_processor"))
    else:
        cls = PROCESSOR_MAPPING[type(config)]
    with _without_number_words(config):
        return cls(**parts, **settings, chat_template=chat_template)


def _pil_class(name: str) -> Any:
    import transformers

    return getattr(transformers, f"{name}Pil")


def _without_torchvision(config: PreTrainedConfig) -> type[ProcessorMixin]:
    """The family's processor class with our frames in the place of its video processor, under its own name."""
    upstream = PROCESSOR_MAPPING[type(config)]

    def arguments(cls: Any, folder: Path, *args: Any, **kwargs: Any) -> list[Any]:
        parts = {
            "image_processor": lambda: AutoImageProcessor.from_pretrained(folder, backend="pil", **_LOCAL),
            "tokenizer": lambda: AutoTokenizer.from_pretrained(folder, **_LOCAL),
            "video_processor": lambda: STAND_INS[config.model_type](**_video_settings(Path(folder))),
        }
        return [parts[name]() for name in cls.get_attributes()]

    replaced = {
        # transformers looks for its own video class here, which is missing without torchvision.
        "check_argument_for_proper_class": lambda self, name, argument: type(argument),
        "_get_arguments_from_pretrained": classmethod(arguments),
    }
    return type(upstream.__name__, (upstream,), replaced)


def _video_settings(folder: Path) -> dict[str, Any]:
    """What a checkpoint says about its video processor, in the order in which transformers looks for it."""
    for name in ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"):
        if not (folder / name).exists():
            continue
        settings = read_json(folder / name)
        if name != "processor_config.json":
            return settings
        if "video_processor" in settings:
            if not isinstance(settings["video_processor"], dict):
                raise LabError(f"it has settings for its video processor in {name} that are no JSON object")
            return settings["video_processor"]
    raise LabError("it has no settings for its video processor")
