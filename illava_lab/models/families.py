"""Where each supported model family keeps its parts. A family is a row of a table; `describe` reads a model with it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from transformers import __version__
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from illava_lab.errors import LabError
from illava_lab.models.anatomy import TYPICAL_CELLS, Anatomy, Cells, LayerParts, Media
from illava_lab.models.layout import Medium


class Family(NamedTuple):
    """A row of the table of what is supported. Every family reduces in the encoder and in the LLM, and takes several
    images; it takes video if `media` has it.

    Attributes:
        name: what people call it.
        tower, projector, language_model: where these are, below `model.model`.
        media: what goes into a prompt.
    """

    name: str
    tower: str
    projector: str
    language_model: str
    media: dict[Medium, Media]


_LLAVA = ("vision_tower", "multi_modal_projector", "language_model")
_IDEFICS = ("vision_model", "connector.modality_projection", "text_model")
_IMAGES = ("image_token_id", "get_image_features")
_VIDEOS = ("video_token_id", "get_video_features")

_QWEN = ("visual", "visual.merger", "language_model")
_QWEN_MEDIA: dict[Medium, Media] = {"image": Media(*_IMAGES), "video": Media(*_VIDEOS)}

# by the model_type of transformers
FAMILIES: dict[str, Family] = {
    "llava": Family("LLaVA-1.5", *_LLAVA, {"image": Media(*_IMAGES)}),
    "llava_next": Family("LLaVA-NeXT", *_LLAVA, {"image": Media(*_IMAGES, "pack_image_features")}),
    "llava_onevision": Family(
        "LLaVA-OneVision", *_LLAVA,
        {"image": Media(*_IMAGES, "pack_image_features"), "video": Media(*_VIDEOS, "apply_pooling", newline=True)},
    ),
    "llava_next_video": Family(
        "LLaVA-NeXT-Video", *_LLAVA,
        {
            "image": Media(*_IMAGES, "pack_image_features"),
            "video": Media(*_VIDEOS, "vision_resampler.forward", early=True),
        },
    ),
    "internvl": Family("InternVL", *_LLAVA, {"image": Media(*_IMAGES, tiled=True)}),
    "idefics3": Family("Idefics3", *_IDEFICS, {"image": Media(*_IMAGES, marked=True)}),
    "smolvlm": Family("SmolVLM", *_IDEFICS, {"image": Media(*_IMAGES, marked=True)}),
    "qwen2_vl": Family("Qwen2-VL", *_QWEN, _QWEN_MEDIA),
    "qwen2_5_vl": Family("Qwen2.5-VL", *_QWEN, _QWEN_MEDIA),
    "qwen3_vl": Family("Qwen3-VL", *_QWEN, _QWEN_MEDIA),
    "qwen3_vl_moe": Family("Qwen3-VL-MoE", *_QWEN, _QWEN_MEDIA),
    "qwen3_5": Family("Qwen3.5-VL", *_QWEN, _QWEN_MEDIA),
    "qwen3_5_moe": Family("Qwen3.5-VL-MoE", *_QWEN, _QWEN_MEDIA),
    # not its videos, whose placeholders are those of images
    "glm4v": Family("GLM-4.1V", *_QWEN, {"image": Media(*_IMAGES)}),
    "glm46v": Family("GLM-4.6V", *_QWEN, {"image": Media(*_IMAGES)}),
}  # fmt: skip

# What is often asked for, and why it is not there.
WHY_NOT: dict[str, str] = {
    "gemma3": "five of six layers of its decoder see a window of the last positions, and tokens of an image see each "
    "other in both directions; what goes at one layer, also at one without a window, is missing in all windows behind "
    "it, which then reach further back than the model has learned",
}


_CLIP_PARTS = LayerParts("layer_norm1", "self_attn", "layer_norm2")
_QWEN_PARTS = LayerParts("norm1", "attn", "norm2")

# vision model_type -> the parts of an encoder layer, and has the tower a CLS token. Published Qwens and GLMs call their
# tower by the name of the whole model, which older releases of transformers leave as it is.
TOWERS: dict[str, tuple[LayerParts, bool]] = {
    "clip_vision_model": (_CLIP_PARTS, True),
    "siglip_vision_model": (_CLIP_PARTS, False),
    "idefics3_vision": (_CLIP_PARTS, False),
    "smolvlm_vision": (_CLIP_PARTS, False),
    "internvl_vision": (LayerParts("layernorm_before", "attention", "layernorm_after"), True),
    **{
        f"{packed}{end}": (_QWEN_PARTS, False)
        for packed in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "glm4v")
        for end in ("_vision", "")
    },
}

DECODERS: tuple[str, ...] = (
    "llama", "mistral", "qwen2", "qwen3", "qwen2_vl_text", "qwen2_5_vl_text",
    "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text", "qwen3_5_moe_text", "glm4v_text",
)  # fmt: skip
# What `layer_types` of a decoder calls layers that attend to all tokens, and those that keep a state instead (a gated
# delta rule).
FULL, LINEAR = "full_attention", "linear_attention"
# Before, a state began anew where several tokens followed a cache, as the next question of a conversation does.
STATES_GO_ON = hasattr(LinearAttentionCacheLayerMixin, "activate_past_recording")


def kinds_of(config: Any) -> str:
    """What transformers calls the family, the tower and the decoder of a configuration."""
    return f"{config.model_type} with {config.vision_config.model_type} and {config.get_text_config().model_type}"


def check_supported(config: Any) -> None:
    """Refuse a configuration that the hooks do not know, before any weight is loaded.

    Raises:
        LabError: names the family, tower or decoder and what is supported.
    """
    kind = getattr(config, "model_type", None)
    if kind not in FAMILIES:
        why = f" ({WHY_NOT[kind]})" if isinstance(kind, str) and kind in WHY_NOT else ""
        raise LabError(f"model family {kind!r:.80} is not supported{why}; supported: {', '.join(FAMILIES)}")
    tower, text = config.vision_config, config.text_config
    if tower.model_type not in TOWERS:
        raise LabError(f"vision tower {tower.model_type!r:.80} is not supported; supported: {', '.join(TOWERS)}")
    if text.model_type not in DECODERS:
        raise LabError(f"decoder {text.model_type!r:.80} is not supported; supported: {', '.join(DECODERS)}")
    wanted = "default" if TOWERS[tower.model_type][1] else "full"
    if getattr(config, "vision_feature_select_strategy", wanted) != wanted:
        raise LabError(
            f"vision_feature_select_strategy={config.vision_feature_select_strategy!r:.80} is not supported with "
            f"{tower.model_type}; supported: {wanted!r}"
        )
    pooling = getattr(config, "spatial_pool_mode", "average"), getattr(config, "spatial_pool_stride", 2)
    if pooling != ("average", 2):
        raise LabError(
            f"spatial_pool_mode={pooling[0]!r:.80} with spatial_pool_stride={pooling[1]!r:.80} is not supported; "
            "supported: 'average' with 2"
        )
    sliding = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    kinds = set(getattr(text, "layer_types", None) or ())
    if kinds == {LINEAR}:
        raise LabError(f"a decoder whose layers are all {LINEAR} is not supported; one must have {FULL}")
    if LINEAR in kinds and not STATES_GO_ON:
        raise LabError(f"a decoder with {LINEAR} needs a newer transformers, 5.17 or later; here is {__version__}")
    if sliding or kinds - {FULL, LINEAR}:
        raise LabError(f"decoders with sliding-window attention are not supported (sliding_window={sliding!r:.80})")


def unwrap(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper, or the model itself.

    Raises:
        LabError: the model is compiled, or a wrapper for several devices.
    """
    if hasattr(model, "get_base_model"):
        return unwrap(model.get_base_model())
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise LabError("a compiled model is not supported: what was compiled does not see the hooks; pass the model")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise LabError(f"a model inside {type(model).__name__} is not supported; pass model.module")
    return model


def shows_the_empty(config: Any) -> bool:
    """Whether a family's processor wants to see the prompts without pictures, too (SmolVLM)."""
    return FAMILIES[config.model_type].media["image"].marked


def describe(model: nn.Module) -> Anatomy:
    """Find the parts of a supported model, of its inner model, or of one inside a PEFT wrapper.

    Raises:
        LabError: an unsupported family, tower or decoder, or a wrapper that hides the model.
    """
    model = unwrap(model)
    config: Any = getattr(model, "config", None)
    check_supported(config)
    family = FAMILIES[config.model_type]
    base: Any = model if hasattr(model, family.language_model) and not hasattr(model, "lm_head") else model.model
    vision = config.vision_config
    tower, language_model = getattr(base, family.tower), getattr(base, family.language_model)
    layers = _encoder_layers(tower)
    parts, has_cls = TOWERS[vision.model_type]
    cells = _cells(vision) if hasattr(vision, "spatial_merge_size") else None
    shuffle = getattr(config, "scale_factor", None) or round(1 / getattr(config, "downsample_ratio", 1))
    patch = _edge(vision.patch_size) * (cells.side if cells else shuffle)
    pixels = TYPICAL_CELLS * patch if cells else _edge(vision.image_size)
    deepstack = getattr(vision, "deepstack_visual_indexes", ())
    return Anatomy(
        base=base,
        tower=tower,
        encoder_layers=layers,
        encoder_depth=_layers_used(getattr(config, "vision_feature_layer", -1), len(layers)),
        layer_parts=parts,
        cls_tokens=int(has_cls),
        grid=(pixels // patch, pixels // patch),
        side=(pixels, patch),
        projector=base.get_submodule(family.projector),
        language_model=language_model,
        llm_layers=language_model.layers,
        media=family.media,
        placeholders={medium: getattr(config, media.token) for medium, media in family.media.items()},
        cells=cells,
        first_llm_layer=len(deepstack),
        deepstack=dict(zip(deepstack, getattr(tower, "deepstack_merger_list", ()), strict=True)),
        shuffle=shuffle,
        linear=_linear(config.get_text_config()),
    )


def _linear(text: Any) -> frozenset[int]:
    kinds = getattr(text, "layer_types", None) or ()
    return frozenset(layer for layer, kind in enumerate(kinds) if kind == LINEAR)


def _edge(size: int | list[int] | tuple[int, int]) -> int:
    return size if isinstance(size, int) else size[0]


def _cells(vision: Any) -> Cells:
    window = getattr(vision, "window_size", None)  # in pixels
    cells = window and window // vision.patch_size // vision.spatial_merge_size
    return Cells(vision.spatial_merge_size, cells, tuple(getattr(vision, "fullatt_block_indexes", ())))


def _encoder_layers(tower: Any) -> nn.ModuleList:
    if hasattr(tower, "blocks"):
        return tower.blocks
    # CLIPVisionModel keeps its encoder one level deeper in some releases of transformers.
    encoder = getattr(tower, "vision_model", tower).encoder
    return encoder.layer if hasattr(encoder, "layer") else encoder.layers


def _layers_used(feature_layer: int | list[int], depth: int) -> int:
    """Encoder layers whose output the projector sees: entry 0 of hidden_states is the input of the first layer."""
    chosen = [feature_layer] if isinstance(feature_layer, int) else list(feature_layer)
    return max(layer if layer >= 0 else depth + 1 + layer for layer in chosen)
