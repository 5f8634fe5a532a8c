"""The settings that papers and their code publish, as schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from illava_lab.errors import LabError
from illava_lab.method.keep import Keep
from illava_lab.method.names import unknown


class Model(NamedTuple):
    """What a setting was published for: layers of the encoder up to the projector, LLM layers, patches of one image."""

    encoder_depth: int
    llm_depth: int
    patches: int | None  # None: as many as the image has


LLAVA_15 = Model(23, 32, 576)  # LLaVA-1.5-7B: CLIP-L/14-336, 24 layers of which 23 are used


ONEVISION = Model(26, 28, 729)  # LLaVA-OneVision-7B: SigLIP-so400m/14-384, 27 layers of which 26 are used


QWEN2_VL = Model(32, 28, None)  # Qwen2-VL-7B


QWEN3_VL = Model(27, 36, None)  # Qwen3-VL-8B


@dataclass(frozen=True)
class Preset:
    """A published setting: which strategy, how it is set, and where it reduces.

    Attributes:
        strategy: the strategy's name.
        encoder, llm: layer -> visual tokens of one image left (int) or fraction kept (float).
        model: what it was published for.
        source: the paper or code that states it.
        settings: of the strategy, where the published configuration differs from the strategy's defaults.
    """

    strategy: str
    encoder: dict[int, Keep]
    llm: dict[int, Keep]
    model: Model
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The strategy with its settings, such as ``illava(score='lse')``."""
        inside = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{self.strategy}({inside})" if inside else self.strategy


def _all(layers: range, keep: Keep) -> dict[int, Keep]:
    return dict.fromkeys(layers, keep)


_LSE = {"score": "lse"}
_TOUCHED = {"score": "lse", "cells": "touched"}
_ILLAVA = "iLLaVA (arXiv 2412.06263), code release 1"


_ICLR = "iLLaVA (arXiv 2412.06263), code of the ICLR 2026 release, configuration"


_FASTV = "FastV (arXiv 2403.06764)"


_SPARSEVLM = "SparseVLM (arXiv 2410.04417), code version 1.5: kept tokens and clusters after layers 2, 6 and 15"


_VISIONZIP = "VisionZip (arXiv 2412.04467), dominant and contextual tokens for LLaVA-1.5"


_CDPRUNER = "CDPruner (arXiv 2506.10967), relevance by embeddings, as LLaVA has no text tower"


_PRUNESID = "PruneSID (arXiv 2603.09480), LLaVA-1.5"


_VISPRUNER = "VisPruner (LightCompress configuration), LLaVA-1.5"


PRESETS: dict[str, Preset] = {
    # R = 92 of 729 tokens go in each of four SigLIP layers, then 30 % at one LLM layer.
    "illava-image": Preset(
        "illava", {5: 637, 6: 545, 7: 453, 8: 361}, {8: 0.70}, ONEVISION, f"{_ILLAVA}: LLaVA-OneVision-7B, single image"
    ),
    "illava-video": Preset(
        "illava", {3: 637, 4: 545, 5: 453, 6: 361}, {2: 0.70}, ONEVISION, f"{_ILLAVA}: LLaVA-OneVision-7B, 32 frames"
    ),
    # Its 0.16 is the share removed, rounded down to whole groups of four patches.
    "illava-qwen2-vl": Preset(
        "illava", _all(range(12, 16), 0.84), _all(range(6, 9), 0.90), QWEN2_VL, f"{_ILLAVA}: Qwen2-VL-7B",
        _LSE,
    ),
    "illava-2026-67": Preset(
        "illava-2026", _all(range(5, 9), 0.85), _all(range(19, 26, 2), 0.90), QWEN3_VL,
        f"{_ICLR} for 66.7 % fewer tokens: Qwen3-VL-8B", _LSE,
    ),
    "illava-2026-89": Preset(
        "illava-2026", _all(range(2, 9), 0.85), _all(range(21, 26, 2), 0.70), QWEN3_VL,
        f"{_ICLR} for 88.9 % fewer tokens: Qwen3-VL-8B", _LSE,
    ),
    "illava-2026-67-code": Preset(
        "illava-2026", _all(range(5, 9), 0.85), _all(range(19, 26, 2), 0.90), QWEN3_VL,
        f"{_ICLR} for 66.7 % fewer tokens, as the code runs it (nominal): Qwen3-VL-8B", _TOUCHED,
    ),
    "illava-2026-89-code": Preset(
        "illava-2026", _all(range(2, 9), 0.85), _all(range(21, 26, 2), 0.70), QWEN3_VL,
        f"{_ICLR} for 88.9 % fewer tokens, as the code runs it (nominal): Qwen3-VL-8B", _TOUCHED,
    ),
    "illava-2026-demo": Preset(
        "illava-2026", _all(range(5, 9), 0.90), _all(range(15, 22, 2), 0.85), QWEN3_VL,
        f"{_ICLR}, default of its README and its demo: Qwen3-VL-8B", _LSE,
    ),
    # Two commits of the code disagree about layer 19; "illava-2026-89" has the other list.
    "illava-2026-92": Preset(
        "illava-2026", _all(range(2, 9), 0.85), _all(range(19, 26, 2), 0.70), QWEN3_VL,
        f"{_ICLR}, the list of LLM layers with one more: Qwen3-VL-8B", _LSE,
    ),
    "illava-qwen2-vl-2b": Preset(
        "illava", _all(range(12, 16), 0.84), {}, QWEN2_VL, f"{_ILLAVA}: Qwen2-VL-2B, encoder alone", _LSE
    ),
    # R = 80 in each of seven layers: 169 = 13 x 13 are left.
    "illava-show-image": Preset(
        "illava", {layer: 729 - 80 * (layer - 1) for layer in range(2, 9)}, {8: 0.50}, ONEVISION,
        f"{_ILLAVA}: LLaVA-OneVision-7B, its pictures of merged tokens, single image",
    ),
    "illava-show-video": Preset(
        "illava", {layer: 729 - 80 * (layer - 1) for layer in range(2, 9)}, {2: 0.50}, ONEVISION,
        f"{_ILLAVA}: LLaVA-OneVision-7B, its pictures of merged tokens, video",
    ),
    # 577 tokens with CLS become 209 by merging 16 in each of 23 layers.
    "tome-16": Preset(
        "tome", {layer: 576 - 16 * (layer + 1) for layer in range(23)}, {}, LLAVA_15,
        "ToMe (arXiv 2210.09461), constant r = 16, on CLIP-L/14-336",
    ),
    "fastv": Preset("fastv", {}, {2: 0.5}, LLAVA_15, f"{_FASTV}, K = 2, R = 50 %"),
    "fastv-75": Preset("fastv", {}, {2: 0.25}, LLAVA_15, f"{_FASTV}, K = 2, R = 75 %"),
    "pyramiddrop": Preset(
        "pyramiddrop", {}, {8: 0.5, 16: 0.5, 24: 0.5}, LLAVA_15,
        "PyramidDrop (arXiv 2410.17247): lambda = 0.5 before layers 8, 16, 24",
    ),
    "sparsevlm-192": Preset("sparsevlm", {}, {3: 309, 7: 204, 16: 113}, LLAVA_15, f"{_SPARSEVLM}, for 192 on average"),
    "sparsevlm-128": Preset("sparsevlm", {}, {3: 312, 7: 117, 16: 39}, LLAVA_15, f"{_SPARSEVLM}, for 128 on average"),
    "sparsevlm-64": Preset("sparsevlm", {}, {3: 82, 7: 32, 16: 18}, LLAVA_15, f"{_SPARSEVLM}, for 64 on average"),
    "visionzip-192": Preset("visionzip", {22: 192}, {}, LLAVA_15, f"{_VISIONZIP}: 162 + 30"),
    "visionzip-128": Preset("visionzip", {22: 128}, {}, LLAVA_15, f"{_VISIONZIP}: 108 + 20"),
    "visionzip-64": Preset("visionzip", {22: 64}, {}, LLAVA_15, f"{_VISIONZIP}: 54 + 10"),
    "fastervlm-128": Preset("fastervlm", {22: 128}, {}, LLAVA_15, "FasterVLM (LightCompress, rate 0.778)"),
    "vispruner-192": Preset("vispruner", {22: 192}, {}, LLAVA_15, f"{_VISPRUNER}, 66.7 % pruned"),
    "vispruner-128": Preset("vispruner", {22: 128}, {}, LLAVA_15, f"{_VISPRUNER}, 77.8 % pruned"),
    "vispruner-64": Preset("vispruner", {22: 64}, {}, LLAVA_15, f"{_VISPRUNER}, 88.9 % pruned"),
    # Published before the first LLM layer; the encoder's last layer is where the lab comes nearest to that.
    "divprune": Preset("divprune", {22: 56}, {}, LLAVA_15, "DivPrune (arXiv 2503.02175): ratio 0.098 of 576 tokens"),
    "cdpruner-192": Preset("cdpruner", {}, {0: 192}, LLAVA_15, f"{_CDPRUNER}, 192 tokens"),
    "cdpruner-64": Preset("cdpruner", {}, {0: 64}, LLAVA_15, f"{_CDPRUNER}, 64 tokens"),
    "holov-64": Preset(
        "holov", {22: 64}, {}, LLAVA_15, "HoloV (arXiv 2510.02912), as its code is set: 16 chunks", {"chunks": 16}
    ),
    # T counts CLS, which LLaVA then drops.
    "prunesid-192": Preset("prunesid", {22: 191}, {}, LLAVA_15, f"{_PRUNESID}, T = 192"),
    "prunesid-64": Preset("prunesid", {22: 63}, {}, LLAVA_15, f"{_PRUNESID}, T = 64"),
    "vscan-64": Preset("vscan", {22: 96}, {16: 32}, LLAVA_15, "VScan (arXiv 2505.22654): 96, then 32, 64 on average"),
    "dart": Preset("dart", {}, {2: 124}, LLAVA_15, "DART (arXiv 2502.11494): K = 2, R = 0.778, 4 + 8 * 15 tokens"),
}  # fmt: skip


def presets() -> dict[str, Preset]:
    """The settings that papers and their code publish, by name."""
    return dict(PRESETS)


def get_preset(name: str) -> Preset:
    """One of them.

    Raises:
        LabError: no such preset; names the nearest ones.
    """
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    raise LabError(unknown("preset", name, PRESETS))
