"""Around one forward pass of the vision-language model, and around `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.configuration_utils import ALL_STATIC_CACHE_IMPLEMENTATIONS

from illava_lab.errors import LabError
from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.changes import Changes
from illava_lab.hooks.compat import COUNTS_PLACEHOLDERS, cache_of
from illava_lab.hooks.encoding import noted, recorded
from illava_lab.hooks.llm.cache import state_of
from illava_lab.hooks.llm.call import Call
from illava_lab.hooks.llm.prompt import Prompt, placed_images, read_prompt
from illava_lab.models.layout import Medium
from illava_lab.trace.encoded import EncodedImage
from illava_lab.trace.trace import Prefilled

STATIC = "static caches are not supported while a strategy is attached; use the default dynamic cache"


class Watch:
    """What is known before the language model is called: which prompt, and which pictures."""

    def __init__(self, attachment: Attachment, model: Any) -> None:
        self.attachment, self.anatomy, self.model = attachment, attachment.anatomy, model
        self.reduces = attachment.schedule.reduces

    def install(self, changes: Changes) -> None:
        """Hook the model and the module that joins images and text."""
        changes.method(self.anatomy.base, "forward", self._forward)
        if not self.reduces and self.attachment.graphs is None:
            return
        if hasattr(self.model, "generate"):
            changes.method(self.model, "generate", self._generate)
        if self.attachment.graphs is not None and self.model is not self.anatomy.base:
            changes.method(self.model, "forward", self._read)
        if COUNTS_PLACEHOLDERS and hasattr(self.anatomy.base, "get_placeholder_mask"):
            changes.method(self.anatomy.base, "get_placeholder_mask", self._placeholders)

    def _placeholders(
        self, original: Callable, input_ids: Tensor | None, inputs_embeds: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Placeholders are counted on the host, where they are known: to ask the device is to wait for the tower."""
        call = self.attachment.running.call
        prompt = None if call is None else call.prompt
        known = None if prompt is None else prompt.ids
        if known is None or input_ids is None or known.shape != tuple(input_ids.shape):
            return original(input_ids, inputs_embeds, *args, **kwargs)
        shape = tuple(inputs_embeds.shape)  # of which one number is held, on the host
        states = torch.from_numpy(np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape)))
        masks = original(torch.from_numpy(known), states, *args, **kwargs)
        device = inputs_embeds.device
        if isinstance(masks, tuple):
            return tuple(mask.to(device, non_blocking=True) for mask in masks)
        return masks.to(device, non_blocking=True)

    def _generate(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """What decides about a reduction is the prompt, and not what was drafted or generated behind it."""
        ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
        config = kwargs.get("generation_config", args[1] if len(args) > 1 else None) or self.model.generation_config
        asked = kwargs.get("cache_implementation", config.cache_implementation)
        if asked == "paged":  # transformers would only log it
            raise LabError("paged caches are not supported while a strategy is attached; use the default dynamic cache")
        if self.reduces and asked in ALL_STATIC_CACHE_IMPLEMENTATIONS:  # before transformers hangs one on the model
            raise LabError(STATIC)
        length = ids.shape[1] if isinstance(ids, Tensor) and ids.dim() == 2 else None
        longest, running = kwargs.get("max_new_tokens", config.max_new_tokens), self.attachment.running
        with running.during("prompt_length", length), running.during("longest", longest):
            return original(*args, **kwargs)

    def _read(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around a forward pass that makes logits of the states that the language model returns."""
        with self.attachment.running.during("read", kwargs.get("logits_to_keep", 0)):
            return original(*args, **kwargs)

    def _forward(self, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """Around one forward pass."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        call = Call({})
        if self.reduces:
            self._refuse(kwargs)
            call.prompt = self._prompt(ids, kwargs)
            call.encoded = self._ahead(kwargs) if call.prompt is not None else {}
        elif ids is not None and _brings_images(kwargs):
            self._show(call, ids, kwargs)
        if self.attachment.graphs is not None and not self.reduces:
            call.prompt, call.encoded = self._if_ordinary(ids, kwargs)
        with self.attachment.running.during("call", call):
            return original(*args, **kwargs)

    def _refuse(self, kwargs: dict[str, Any]) -> None:
        anatomy = self.anatomy
        if any(module.training for module in (anatomy.base, anatomy.tower, anatomy.language_model)):
            raise LabError("the model is in training mode; call model.eval() first")
        mask, cache = kwargs.get("attention_mask"), cache_of(kwargs)
        if isinstance(mask, dict) or (mask is not None and mask.dim() != 2):
            raise LabError(
                "prepared 4D attention masks and static caches are not supported while a strategy is attached"
            )
        if getattr(cache, "is_compileable", False):
            raise LabError(STATIC)
        if kwargs.get("cu_seq_lens_q") is not None:
            raise LabError(
                "several prompts in one row (cu_seq_lens_q) are not supported while a strategy is attached; give each "
                "prompt a row"
            )

    def _prompt(self, ids: Tensor | None, kwargs: dict[str, Any]) -> Prompt | None:
        """What lies in every slot; None for a call that goes on from a cache.

        Raises:
            LabError: this call does not go with its cache, or its visual tokens cannot be found.
        """
        cache = cache_of(kwargs)
        if cache is not None and cache.get_seq_length():
            if _brings_images(kwargs):
                raise LabError(
                    "images cannot be added to a cache that already holds tokens while a strategy is attached"
                )
            if state_of(cache) is None:
                raise LabError("this cache was filled before the strategy was attached; start with a fresh one")
            return None
        if ids is None:
            raise LabError(
                "visual tokens are found in input_ids, and none came to the model, which drops them where "
                "inputs_embeds are given; pass input_ids with pixel_values, without inputs_embeds"
            )
        length = self.attachment.running.prompt_length
        if length is not None and ids.shape[1] < length:
            raise LabError(
                "a prompt that comes in chunks (prefill_chunk_size) is not supported while a strategy is attached"
            )
        mask: Tensor | None = kwargs.get("attention_mask")
        prompt = read_prompt(self.anatomy, ids, mask, kwargs.get("position_ids"), length)
        if prompt.visual.any():
            self._refuse_other_media({medium for medium, holds in prompt.media.items() if holds.any()})
        return prompt

    def _refuse_other_media(self, shown: set[Medium]) -> None:
        for layer in self.attachment.schedule.llm:
            own = self.attachment.strategy.at("llm", layer)
            if not shown & set(own.media):
                raise LabError(f"strategy {own.name!r} reduces {own.media[0]}s, and these prompts show none")

    def _if_ordinary(self, ids: Tensor | None, kwargs: dict[str, Any]) -> tuple[Prompt | None, dict[Medium, Any]]:
        """What could be captured where nothing is reduced; what cannot is the bare model's, and refused to nobody."""
        try:
            self._refuse(kwargs)
            return self._prompt(ids, kwargs), self._ahead(kwargs)
        except LabError:
            return None, {}

    def _ahead(self, kwargs: dict[str, Any]) -> dict[Medium, list[EncodedImage]]:
        """What was encoded before this call."""
        return {medium: noted(features, medium) for medium, features in _features(kwargs).items()}

    def _show(self, call: Call, ids: Tensor, kwargs: dict[str, Any]) -> None:
        """Where nothing is reduced: what the pictures are made of, told when somebody asks."""

        ahead = {medium: recorded(features) for medium, features in _features(kwargs).items()}

        def make() -> Prefilled:
            encoded = {medium: images for medium, images in {**ahead, **call.encoded}.items() if images is not None}
            prompt = read_prompt(self.anatomy, ids, None, None, None).only(encoded)
            images = placed_images(self.anatomy, prompt, encoded)
            rows = [image.row for image in images]
            return Prefilled([], [image.encoded for image in images], [rows.count(row) for row in range(len(ids))])

        self.attachment.trace.show(make)


def _brings_images(kwargs: dict[str, Any]) -> bool:
    pixels = (kwargs.get("pixel_values"), kwargs.get("pixel_values_videos"), *_features(kwargs).values())
    return any(value is not None for value in pixels)


def _features(kwargs: dict[str, Any]) -> dict[Medium, Any]:
    """What was encoded ahead, by medium."""
    given: dict[Medium, Any] = kwargs.get("mm_encoder_outputs") or {}
    return {medium: features for medium, features in given.items() if features is not None}
