"""Dropping visual tokens at no cost: the layers in a plain loop, and a slice where one of them reduces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.hooks.compat import CACHE, causal_mask
from illava_lab.method.strategy import Strategy
from illava_lab.models.anatomy import Anatomy
from illava_lab.models.families import describe
from illava_lab.models.layout import Layout
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.prompt_shape import PromptShape, prompt_shape
from illava_lab.session.prompt import Inputs, text_tokens
from illava_lab.session.prompt import prefill as run_model
from illava_lab.trace.trace import Trace

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


class Kept:
    """Keys and values as a layer made them: what a cache has to hold, and no more.

    Attributes:
        layers: number of a layer -> keys and values, (B, heads, L, d) each.
    """

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """What an attention calls its cache with."""
        self.layers[layer] = key, value
        return key, value


Prefill = Callable[[], tuple[Tensor, Kept]]


def prefill(model: nn.Module, inputs: Inputs, strategy: Strategy, schedule: Plan) -> Prefill:
    """A prefill that loses as many tokens at the same places as this strategy does, without choosing any.

    The layers of the model are called in a loop, with no hook on them. Where a layer reduces, the first so many tokens
    stay: ``hidden[:, :keep]``. Nothing is scored or merged; placeholders, masks and rotary tables are made beforehand,
    once for each length. What is stitched, interpolated or shuffled between tower and prompt is cut to its length
    instead; a video that loses nothing in the tower is pooled as the model does it. So this is what a prefill of these
    lengths takes at least, in these layers, and its answer means nothing (with nothing reduced, that of LLaVA-1.5 is
    the model's own). What the model computes for nothing (the last layer of CLIP, the pooling head of SigLIP) is
    computed here too.

    Args:
        inputs: of prompts that are alike, without padding; they may show several images, or videos, that are alike.
        strategy, schedule: run once, to see how many tokens are left where.

    Returns:
        A function without arguments, which returns the logits (B, 1, V) of the last position, and keys and values.

    Raises:
        LabError: there is no such loop for this model, these prompts or this schedule; it says why.
    """
    anatomy = describe(model)
    if strategy.own_count:
        raise LabError("there is no loop by hand where pictures decide how many of their tokens stay")
    medium = _medium(model, anatomy, inputs, schedule)
    with attach(model, strategy, schedule) as trace:
        run_model(model, inputs)
        layout, entered = _alike(trace, len(inputs["input_ids"]))
        shape = prompt_shape(anatomy, schedule, text_tokens(model, inputs), None, trace)
    pixels = inputs[PIXELS[medium]]
    if pixels.dim() == 5:  # crops or frames of each image or video
        pixels = pixels[:, : layout.patches[0]].flatten(0, 1)
    ids, places = _short(anatomy, inputs["input_ids"], layout, entered, trace.images_per_row[0])
    pools = medium == "video" and entered == layout.tokens
    return _Loop(model, anatomy, shape, pixels, ids, places, layout.slots - layout.tokens, entered, pools)


def captured(run: Prefill) -> Prefill:
    """The same as a captured CUDA graph: a call replays it, and what it returns is overwritten by the next call.

    Raises:
        RuntimeError: the model is not on a CUDA device, or something in the loop cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # kernels are chosen, and work space is taken, before the capture
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        out = run()

    def replay(reads: Prefill = run) -> tuple[Tensor, Kept]:
        """Holds on to `run`: what it made beforehand is read at every replay."""
        graph.replay()
        return out

    return replay


def _medium(model: Any, anatomy: Anatomy, inputs: Inputs, schedule: Plan) -> str:
    """What the prompts show.

    Raises:
        LabError: a model, prompts or a schedule for which there is no loop by hand.
    """
    media = [medium for medium, name in PIXELS.items() if inputs.get(name) is not None]
    why = None
    if anatomy.cells is not None:
        why = "pictures of any size are packed into one sequence"
    elif not isinstance(getattr(anatomy.base.config, "vision_feature_layer", -1), int):
        why = "the projector takes several layers of the tower"
    elif schedule.image is not None:
        why = "the picture itself is made smaller"
    elif anatomy.media["image"].marked:
        why = "text stands between the tiles of a picture"
    elif media == ["video"] and anatomy.media["video"].early:
        why = "frames are pooled before the projector"
    elif len(media) != 1:
        why = f"the prompts show {' and '.join(media) or 'nothing'}"
    elif len({parameter.device for parameter in model.parameters()}) > 1:
        why = "the model lies on several devices"
    else:
        ids, tokens = inputs["input_ids"], torch.tensor(list(anatomy.placeholders.values()))
        visual = torch.isin(ids.cpu(), tokens)
        if not bool(inputs["attention_mask"].all()) or not bool((visual == visual[:1]).all()):
            why = "the prompts are not alike"
    if why is not None:
        raise LabError(f"there is no loop by hand where {why}")
    return media[0]


def _alike(trace: Trace, prompts: int) -> tuple[Layout, int]:
    """What every image is made of, and how many visual tokens the encoder left of it.

    Raises:
        LabError: images differ in that.
    """
    images = range(sum(trace.images_per_row))
    layouts = [trace.layout(image) for image in images]
    found = {
        (layout.patches, layout.slots, trace.entered(image)) for image, layout in zip(images, layouts, strict=True)
    }
    if len(found) != 1 or len(images) != prompts * trace.images_per_row[0]:
        raise LabError("there is no loop by hand where the images of the prompts are not alike")
    return layouts[0], trace.entered(0)


def _short(anatomy: Anatomy, ids: Tensor, layout: Layout, entered: int, images: int) -> tuple[Tensor, Tensor]:
    """(B, L) the prompts with as many placeholders as are left, and (n,) where these are."""
    visual = torch.isin(ids[0].cpu(), torch.tensor(list(anatomy.placeholders.values())))
    left = layout.slots - layout.tokens + entered
    if int(visual.sum()) != images * layout.slots:
        raise LabError("there is no loop by hand where placeholders and images do not agree")
    number = visual.cumsum(0) - 1
    stays = ~visual | (number % layout.slots < left)
    return ids[:, stays.to(ids.device)], visual[stays].nonzero()[:, 0].to(ids.device)


@dataclass(frozen=True, eq=False)
class _Lengths:
    """What the layers of a language model get at one length: mask and rotary tables."""

    length: int
    mask: Any
    tables: tuple[Tensor, Tensor]


class _Loop:
    """The loop; see `prefill`."""

    def __init__(
        self, model: Any, anatomy: Anatomy, shape: PromptShape, pixels: Tensor, ids: Tensor, places: Tensor,
        markers: int, entered: int, pools: bool,
    ) -> None:  # fmt: skip
        self._model, self._anatomy, self._pixels, self._ids, self._places = model, anatomy, pixels, ids, places
        self._markers, self._entered, self._pools = markers, entered, pools
        self._images = len(shape.visuals) * len(ids)
        self._tower = getattr(anatomy.tower, "vision_model", anatomy.tower)
        left = shape.visuals[0].encoder[1:]
        self._encoder = [anatomy.cls_tokens + count * anatomy.patches_of_token for count in left]
        lengths = [shape.length(index) for index in range(len(anatomy.llm_layers))]
        self._llm = self._lengths(shape.length_before(0), lengths)

    @torch.inference_mode()
    def _lengths(self, entering: int, lengths: list[int]) -> list[_Lengths]:
        """Of every layer."""
        model, made = self._anatomy.language_model, {}
        first = self._model.get_input_embeddings()(self._ids)
        if first.shape[1] != entering:
            raise LabError(f"the loop by hand was to have {entering} tokens, but the prompts have {first.shape[1]}")
        cos, sin = model.rotary_emb(first, position_ids=torch.arange(entering, device=first.device)[None])
        for length in set(lengths):
            mask = causal_mask(model.config, first[:, :length], None, 0)
            made[length] = _Lengths(length, mask, (cos[..., :length, :], sin[..., :length, :]))
        return [made[length] for length in lengths]

    @torch.inference_mode()
    def __call__(self) -> tuple[Tensor, Kept]:
        anatomy, kept = self._anatomy, Kept()
        hidden = self._model.get_input_embeddings()(self._ids)
        hidden.index_copy_(1, self._places, self._visual().to(hidden.dtype))
        for layer, given in zip(anatomy.llm_layers, self._llm, strict=True):
            hidden = layer(
                hidden[:, : given.length], attention_mask=given.mask, position_embeddings=given.tables,
                use_cache=True, **{CACHE: kept},
            )  # fmt: skip
        logits: Tensor = self._model.lm_head(anatomy.language_model.norm(hidden[:, -1:]))
        return logits, kept

    def _visual(self) -> Tensor:
        """(B, n, C) what takes the places of the placeholders."""
        anatomy, base = self._anatomy, self._anatomy.base
        patches = self._encode()[:, anatomy.cls_tokens :]
        # Where a model shuffles pixels, cells lie side by side already: which patches they are made of is all the same.
        features: Tensor = anatomy.projector(patches.reshape(len(patches), -1, patches.shape[2] * anatomy.shuffle**2))
        if self._pools:
            features = base.apply_pooling(features)
        features = features.reshape(self._images, -1, features.shape[-1])[:, : self._entered]
        if self._markers:
            features = torch.cat([features, base.image_newline.expand(self._images, self._markers, -1)], 1)
        return features.reshape(len(self._ids), -1, features.shape[-1])

    def _encode(self) -> Tensor:
        """(rows, CLS + m, C) what the tower gives the projector."""
        anatomy, tower = self._anatomy, self._tower
        hidden = tower.embeddings(self._pixels)
        if hasattr(tower, "pre_layrnorm"):
            hidden = tower.pre_layrnorm(hidden)
        out = hidden
        for number, (layer, keep) in enumerate(zip(anatomy.encoder_layers, self._encoder, strict=True), start=1):
            first_norm, attention, second_norm, mlp = (getattr(layer, name) for name in anatomy.layer_parts)
            attended, _ = attention(first_norm(hidden))
            hidden = (hidden + _scaled(layer, "lambda_1", attended))[:, :keep]
            hidden = hidden + _scaled(layer, "lambda_2", mlp(second_norm(hidden)))
            if number == anatomy.encoder_depth:
                out = hidden
        if hasattr(tower, "layernorm"):  # InternVL, whose projector takes what comes after it
            return tower.layernorm(out)
        if getattr(tower, "head", None) is not None:
            tower.head(tower.post_layernorm(hidden))
        return out


def _scaled(layer: Any, name: str, summand: Tensor) -> Tensor:
    """InternVL scales what it adds."""
    scale = getattr(layer, name, None)
    return summand if scale is None else scale * summand
