"""The vision tower with its reductions, as one graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.graphs.fresh import pack, unpack
from illava_lab.hooks.graphs.keys import strategy_key
from illava_lab.trace.survivors import Survivors

_PLAIN = (str, int, float, bool, type(None))


def captured_tower(
    attachment: Attachment,
    run: Callable[[tuple, dict[str, Any]], tuple[Any, Any]],
    form_of: Callable[[tuple, dict[str, Any]], Any],
    args: tuple,
    kwargs: dict[str, Any],
) -> tuple[Any, Any] | None:
    """What `run(args, kwargs)` returns, computed by a graph; None where it must be computed plainly.

    Only towers that see rows of patches: those that pack pictures of any size read values to cut their sequence.

    Args:
        run: returns what the tower returned, and the form of the call; form_of: makes one that has not run.
    """
    graphs, anatomy, running = attachment.graphs, attachment.anatomy, attachment.running
    # Somebody who calls the tower himself may look at hidden states that are not kept here.
    inside = running.call is not None or running.prompt_length is not None
    if graphs is None or anatomy.cells is not None or not inside or attachment.strategy.own_count:
        return None
    by_name = "pixel_values" in kwargs
    pixels = kwargs["pixel_values"] if by_name else args[0]
    others = {name: value for name, value in kwargs.items() if name != "pixel_values"}
    if not isinstance(pixels, Tensor) or not all(isinstance(value, _PLAIN) for value in (*others.values(), *args[1:])):
        return None
    read = _feature_layers(attachment)

    def record(inputs: list[Tensor]) -> Any:
        if by_name:
            out, form = run(args, {**kwargs, "pixel_values": inputs[0]})
        else:
            out, form = run((inputs[0], *args[1:]), kwargs)
        states = out.get("hidden_states")
        parts: dict[str, Any] = {name: value for name, value in out.items() if isinstance(value, Tensor)}
        if states is not None:
            parts["hidden_states"] = {i % len(states): states[i] for i in read}
        left = form.survivors
        return type(out), parts, len(states or ()), pack((form.steps, left.place, left.size))

    def take(outputs: Any) -> tuple[Any, Any]:
        kind, written, depth, packed = outputs
        parts: dict[str, Any] = {name: x.clone() for name, x in written.items() if isinstance(x, Tensor)}
        if depth:  # of those that nobody reads, none is kept
            read = {i: x.clone() for i, x in written["hidden_states"].items()}
            parts["hidden_states"] = tuple(read.get(i) for i in range(depth))
        steps, place, size = unpack(packed)
        form = form_of(args, kwargs)
        form.steps, form.survivors = steps, Survivors(place.shape[1], place.device, lambda: place, lambda: size)
        return kind(**parts), form

    key = _key(attachment, others, args[1:], by_name), tuple(read)
    return graphs.replay(key, [pixels], record, take)


def _feature_layers(attachment: Attachment) -> list[int]:
    layer = attachment.anatomy.base.config.vision_feature_layer
    return [layer] if isinstance(layer, int) else list(layer)


def _key(attachment: Attachment, others: dict[str, Any], more: tuple, by_name: bool) -> Hashable:
    schedule = attachment.schedule
    # As words: 1 token and all of them, 1.0, are equal numbers.
    plan = repr((schedule.plan("encoder"), schedule.image))
    return "tower", strategy_key(attachment.strategy), plan, tuple(sorted(others.items())), more, by_name
