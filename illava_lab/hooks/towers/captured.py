"""The vision tower with its reductions, as one graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.compat import vision_utils
from illava_lab.hooks.graphs.fresh import copied, pack, unpack
from illava_lab.hooks.graphs.keys import strategy_key
from illava_lab.hooks.towers.tables import tables_of
from illava_lab.method.brought import brought

_PLAIN = (str, int, float, bool, type(None))


def captured_tower(
    attachment: Attachment,
    run: Callable[[tuple, dict[str, Any]], tuple[Any, Any]],
    form_of: Callable[[tuple, dict[str, Any]], Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> tuple[Any, Any] | None:
    """What `run(args, kwargs)` returns, computed by a graph; None where it must be computed plainly.

    Args:
        run: returns what the tower returned, and the form of the call; form_of: makes one that has not run.
    """
    graphs, anatomy, running = attachment.graphs, attachment.anatomy, attachment.running
    # Somebody who calls the tower himself may look at hidden states that are not kept here.
    inside = running.call is not None or running.prompt_length is not None
    if graphs is None or not inside or attachment.strategy.own_count:
        return None
    grids = None
    if anatomy.cells is not None:
        grids = _grids(attachment, kwargs)
        if grids is None:
            return None
        kwargs = {**kwargs, "grid_thw": grids}  # on the host from here on
    name = "pixel_values" if grids is None else "hidden_states"
    pixels = kwargs[name] if name in kwargs else args[0]
    others = {key: value for key, value in kwargs.items() if key not in (name, "grid_thw")}
    if not isinstance(pixels, Tensor) or not all(isinstance(value, _PLAIN) for value in (*others.values(), *args[1:])):
        return None
    read = _feature_layers(attachment)

    def record(inputs: list[Tensor], _: Any) -> Any:
        (own,) = inputs
        more = {} if grids is None else brought(lambda: tables_of(anatomy.tower, grids, own.device))
        if name in kwargs:
            out, form = run(args, {**kwargs, **more, name: own})
        else:
            out, form = run((own, *args[1:]), {**kwargs, **more})
        states = out.get("hidden_states")
        parts = {key: value for key, value in out.items() if key != "hidden_states" and value is not None}
        if states is not None:
            parts["hidden_states"] = {i % len(states): states[i] for i in read}
            if anatomy.shuffle == 1:  # these are what the projector is given, and nothing else is read
                parts = {"hidden_states": parts["hidden_states"]}
        return type(out), parts, len(states or ()), pack(form.told())

    def take(outputs: Any, _: Any) -> tuple[Any, Any]:
        kind, written, depth, packed = outputs
        parts = copied(written)
        if depth:  # of those that nobody reads, none is kept
            parts["hidden_states"] = tuple(parts["hidden_states"].get(i) for i in range(depth))
        form = form_of(args, kwargs)
        form.tell(unpack(packed))
        return kind(**parts), form

    sizes = None if grids is None else tuple(map(tuple, grids.tolist()))
    key = _key(attachment, others, args[1:], name in kwargs), tuple(read), sizes
    return graphs.replay(key, [pixels], record, take)


def _grids(attachment: Attachment, kwargs: dict[str, Any]) -> Tensor | None:
    """(images, 3) on the host, the sizes that a packed tower is called with; None where it cannot be captured.

    Once patches are gone, how many are left in a window of attention is known on the device only.
    """
    cells, grids = attachment.anatomy.cells, kwargs.get("grid_thw")
    assert cells is not None
    known = cells.window is None or not attachment.schedule.plan("encoder")
    known &= not hasattr(attachment.anatomy.tower, "downsample")  # GLM-4.1V's looks its positions up by lengths
    if vision_utils is None or not known or not isinstance(grids, Tensor) or kwargs.get("output_hidden_states"):
        return None
    return grids.to("cpu", torch.long)


def _feature_layers(attachment: Attachment) -> list[int]:
    layer = getattr(attachment.anatomy.base.config, "vision_feature_layer", [])
    return [layer] if isinstance(layer, int) else list(layer)


def _key(attachment: Attachment, others: dict[str, Any], more: tuple, by_name: bool) -> Hashable:
    schedule = attachment.schedule
    # As words: 1 token and all of them, 1.0, are equal numbers.
    plan = repr((schedule.plan("encoder"), schedule.image))
    return "tower", strategy_key(attachment.strategy), plan, tuple(sorted(others.items())), more, by_name
