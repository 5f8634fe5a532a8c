"""A paper's setting on a model: exact where it was published for it, elsewhere at the same relative depths."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from torch import nn

from illava_lab.errors import LabError
from illava_lab.method.registry import get_strategy
from illava_lab.models.families import describe
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.presets import Model, get_preset


def preset_plan(name: str, model: nn.Module) -> Plan:
    """A paper's setting: exact on a model of the depths and grid it was published for, elsewhere the same fractions
    at the same relative depths.

    Raises:
        LabError: no such preset, or a model with too few layers for it.
    """
    published, anatomy = get_preset(name), describe(model)
    here = Model(anatomy.encoder_depth, len(anatomy.llm_layers), anatomy.patches)
    fits = anatomy.fixed or all(isinstance(keep, float) for keep in published.llm.values())
    if fits and published.model._replace(patches=published.model.patches or here.patches) == here:
        return Plan(encoder=published.encoder, llm=published.llm)
    fractions: list[float] = []
    count = published.model.patches or 0  # presets of fractions alone name none
    for keep in (*published.encoder.values(), *published.llm.values()):
        fractions.append(keep if isinstance(keep, float) else keep / count)
        count = keep if isinstance(keep, int) else round(count * keep)
    layers = len(published.encoder)
    encoder = _scaled(
        [*published.encoder], published.model.encoder_depth, here.encoder_depth, range(here.encoder_depth)
    )
    places = anatomy.llm_places(get_strategy(published.strategy)(**published.settings).first_llm_layer)
    llm = _scaled([*published.llm], published.model.llm_depth, here.llm_depth, places)
    return Plan(
        encoder=dict(zip(encoder, fractions[:layers], strict=True)), llm=dict(zip(llm, fractions[layers:], strict=True))
    )


def _scaled(layers: list[int], depth: int, new_depth: int, places: Sequence[int]) -> list[int]:
    """The same relative depths in another model, distinct, at the layers that it allows (`places`, ascending).

    Raises:
        LabError: the model has too few layers.
    """
    if len(layers) > len(places):
        raise LabError(f"the preset needs {len(layers)} layers, this model has {new_depth}")
    out: list[int] = []  # which of the places
    for layer in layers:
        same = new_depth - 1 if layer == depth - 1 else round(layer / depth * new_depth)
        out.append(max(bisect_left(places, same), out[-1] + 1 if out else 0))
    over = max(0, out[-1] - len(places) + 1) if out else 0
    return [places[at - over] for at in out]
