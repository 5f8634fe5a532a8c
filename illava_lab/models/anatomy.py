"""The parts of one model that the hooks need, whatever family it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from illava_lab.method.tokens import Stage
from illava_lab.models.layout import Medium


class Media(NamedTuple):
    """How images (or videos) get into the prompt.

    Attributes:
        token: name of the placeholder's id in the configuration.
        encode: method of `model.model` that turns pixels into features for the placeholders.
        pack: method that joins crops or pools patches in between, or None if a patch is a placeholder.
        tiled: an image may be several encoder rows (tiles), whose placeholders follow each other without a gap.
        marked: the same, but in front of each tile stand two tokens: one that comes once more behind the last tile of
            an image, and one that says which tile it is.
        newline: behind all frames of a video comes a marker.
        early: patches are pooled before the projector, not behind it.
    """

    token: str
    encode: str
    pack: str | None = None
    tiled: bool = False
    marked: bool = False
    newline: bool = False
    early: bool = False


class LayerParts(NamedTuple):
    """Attribute names inside an encoder layer, in the order in which they run."""

    first_norm: str
    attention: str
    second_norm: str
    mlp: str = "mlp"


TYPICAL_CELLS = 24  # along an edge, of a picture for a tower that takes any size: 576 visual tokens, as in LLaVA-1.5


class Cells(NamedTuple):
    """How a tower that takes images of any size, packed into one sequence, groups their patches.

    Attributes:
        side: patches along the side of a cell, the block that the patch merger makes one visual token of.
        window: cells along the side of an attention window, or None if there are none.
        full: where there are windows, the layers that attend over the whole image all the same.
    """

    side: int
    window: int | None
    full: tuple[int, ...] = ()

    def window_at(self, layer: int) -> int | None:
        """The window of one encoder layer."""
        return None if layer in self.full else self.window


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The parts of one model that the hooks need.

    Attributes:
        base: the module that joins image features and text (`model.model`).
        encoder_layers: the layers of the vision tower; only the first `encoder_depth` reach the projector.
        layer_parts: attribute names inside an encoder layer.
        cls_tokens: 1 when the tower puts a CLS token in front, else 0.
        grid: (height, width) in patches of one row of the encoder: an image, a crop or a frame. Where they come in any
            size, that of a typical one in cells, for which budgets are computed; where there is a `shuffle`, in cells.
        side: (pixels of such a row, pixels of a patch, or of a cell where `grid` counts these), along one edge.
        media: what goes into a prompt, and how.
        placeholders: the id in input_ids that holds the place of a visual token, by medium.
        cells: how patches become visual tokens in a packed tower, or None for other towers.
        first_llm_layer: the first that can reduce: where layers add visual features of their own to their output
            (deepstack of Qwen3-VL), it comes after these. A strategy that ranks by attention needs a layer before it.
        deepstack: encoder layer -> the projector of the features that are taken from its output.
        shuffle: patches along the side of a cell, the block of which a pixel shuffle behind the tower makes one visual
            token; 1 where there is none.
        linear: layers of the LLM without attention: they keep a state, into which every token that they see goes.
        fixed: every image has as many visual tokens as a row has patches.
    """

    base: Any  # a part of transformers, as the next: what its attributes are, torch's types cannot know
    tower: Any
    encoder_layers: nn.ModuleList
    encoder_depth: int
    layer_parts: LayerParts
    cls_tokens: int
    grid: tuple[int, int]
    side: tuple[int, int]
    projector: nn.Module
    language_model: Any
    llm_layers: nn.ModuleList
    media: dict[Medium, Media]
    placeholders: dict[Medium, int]
    cells: Cells | None = None
    first_llm_layer: int = 0
    deepstack: Mapping[int, nn.Module] = field(default_factory=dict)
    shuffle: int = 1
    linear: frozenset[int] = frozenset()

    @property
    def first_attending(self) -> int:
        """The first layer of the LLM with attention; it is the one by which a cache counts tokens."""
        return min(set(range(len(self.llm_layers))) - self.linear)

    def llm_places(self, first: int) -> list[int]:
        """Layers of the LLM before which a method may reduce.

        Tokens may leave in front of any layer: those behind it, whatever they are, run on what is left as if there had
        been no more. But who ranks by attention needs the layer before to have one.

        Args:
            first: the first layer before which the method may run at all (`Strategy.first_llm_layer`); 0 is that of
                methods that need no attention.
        """
        start = max(self.first_llm_layer, first)
        return [at for at in range(start, len(self.llm_layers)) if not first or at - 1 not in self.linear]

    def llm_place(self, layer: int, first: int) -> int:
        """The one of `llm_places(first)` that a method takes which would reduce before `layer`."""
        places = self.llm_places(first)
        return next((at for at in places if at >= layer), places[-1] if places else layer)

    @property
    def fixed(self) -> bool:
        several = any(media.pack or media.tiled or media.marked for media in self.media.values())
        return self.cells is None and not several

    @property
    def rows_may_differ(self) -> bool:
        """Whether rows of the encoder may differ in how many tokens they have left."""
        one_layer = isinstance(getattr(self.base.config, "vision_feature_layer", -1), int)
        return self.shuffle == 1 and one_layer

    @property
    def image_token_id(self) -> int:
        return self.placeholders["image"]

    @property
    def patches(self) -> int:
        """Patches (or cells, as in `grid`) in one row of the encoder (an image, a crop or a frame), unreduced."""
        return self.grid[0] * self.grid[1]

    @property
    def patches_of_token(self) -> int:
        """Patches in what `grid` counts: 1, or those of a cell."""
        return (self.cells.side if self.cells else self.shuffle) ** 2

    def depth(self, stage: Stage) -> int:
        """Layers of a stage that a reduction can act on."""
        return self.encoder_depth if stage == "encoder" else len(self.llm_layers)
