"""Processors that need no torchvision: images and video frames both go through the PIL-backed image processors.

transformers prepares videos with torchvision only, and without it `LlavaOnevisionProcessor` and `InternVLProcessor`
cannot even be built. Here a stand-in takes the place of their video processors (`illava_lab.models.frames`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    ProcessorMixin,
)

# In 5.6 and 5.17 the name at the top of transformers stands for a class that asks for torchvision; this one does not.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from illava_lab.errors import LabError
from illava_lab.models.folder import read_json
from illava_lab.models.frames import STAND_INS

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
