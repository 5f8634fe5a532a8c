"""Values of a configuration that have to make sense, which neither transformers nor the shapes of the weights tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from transformers import PreTrainedConfig

from illava_lab.errors import LabError
from illava_lab.models.families import FAMILIES, describe

# Of the configuration of the tower or the decoder: name -> (above, at most).
_REAL: dict[str, tuple[float, float]] = {
    "rms_norm_eps": (0, 1), "layer_norm_eps": (0, 1), "attention_dropout": (-1e-9, 1), "rope_theta": (0, math.inf),
}  # fmt: skip
_WHOLE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    "max_position_embeddings", "depth", "embed_dim", "num_heads", "num_channels",
    "spatial_merge_size", "temporal_patch_size",
)  # fmt: skip
# Answers come as objects with one state for each layer, as the hooks need them.
_PLAIN = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}


def check_values(config: PreTrainedConfig) -> None:
    """Refuse numbers that no model can have, before one is made of them.

    Raises:
        LabError: names the value and what is allowed.
    """
    for part in (config, config.vision_config, config.text_config):
        for name, wanted in _PLAIN.items():
            if bool(getattr(part, name, wanted)) is not wanted:
                raise LabError(f"{name} must be {wanted} in its configuration, got {getattr(part, name)!r:.80}")
    for part in (config.vision_config, config.text_config):
        rope = getattr(part, "rope_parameters", None)
        given = {**vars(part), **(rope if isinstance(rope, dict) else {})}
        for name, (above, most) in _REAL.items():
            value = given.get(name)
            if value is not None and not (is_a(value, Real) and above < value <= most and math.isfinite(value)):
                raise LabError(f"{name} must be above {max(above, 0):g} in its configuration, got {value!r:.80}")
        for name in _WHOLE:
            value = given.get(name)
            if value is not None and not (is_a(value, Integral) and value >= 1):
                raise LabError(f"{name} must be a whole number of at least 1 in its configuration, got {value!r:.80}")
    vocabulary: Any = config.get_text_config().vocab_size
    for medium, media in FAMILIES[config.model_type].media.items():
        token = getattr(config, media.token, None)
        if not is_token(token, vocabulary):
            raise LabError(
                f"{media.token}, which holds the place of an {medium}, must be from 0 to {vocabulary - 1} in its "
                f"configuration, got {token!r:.80}"
            )


def check_parts(model: Any, inputs: Mapping[str, Any]) -> None:
    """Refuse a model whose parts do not fit together, or not to its processor.

    Args:
        model: its weights are on the device "meta", where only shapes are computed.
        inputs: what the processor made of a question about one picture.

    Raises:
        LabError: the projector takes the output of a layer that is not there, a picture has no patches, or another
            number of visual tokens than the prompt has places for it.
    """
    anatomy = describe(model)
    if not 1 <= anatomy.encoder_depth <= len(anatomy.encoder_layers):
        raise LabError(
            f"vision_feature_layer is that of layer {anatomy.encoder_depth} in its configuration, of "
            f"{len(anatomy.encoder_layers)} layers"
        )
    if anatomy.patches < 1:
        raise LabError(f"a picture of {anatomy.side[0]} pixels has no patch of {anatomy.side[1]} in its configuration")
    places = int((inputs["input_ids"] == anatomy.image_token_id).sum())
    if anatomy.cells:
        tokens = int(inputs["image_grid_thw"].prod()) // anatomy.cells.side**2
    elif anatomy.media["image"].marked:  # which tiles are padding, the model looks up in their pixels
        tokens = inputs["pixel_values"].shape[1] * anatomy.patches
    else:
        shown = {"pixel_values": inputs["pixel_values"].to("meta", model.dtype)}
        if "image_sizes" in inputs:
            shown["image_sizes"] = inputs["image_sizes"]
        features = anatomy.base.get_image_features(**shown, return_dict=True).pooler_output
        tokens = sum(math.prod(one.shape[:-1]) for one in features)
    if places != tokens:
        raise LabError(
            f"its processor makes {places} places in the prompt for a picture of which its model makes {tokens} visual "
            "tokens: their configurations differ"
        )


def is_token(value: Any, vocabulary: int) -> bool:
    """Whether it is the id of a token."""
    return is_a(value, Integral) and 0 <= value < vocabulary


def is_a(value: Any, kind: type) -> bool:
    """Whether it is such a number; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)
