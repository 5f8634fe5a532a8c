"""What the tokens of each layer cost, as numbers for a page: it computes forecasts itself while sliders move."""

from __future__ import annotations

from typing import Any

from torch import nn

from illava_lab.models.families import describe
from illava_lab.schedules.flops import CHUNK, flops_by_layer
from illava_lab.schedules.schedule import Schedule
from illava_lab.widgets.schedule_forecast import PARTS, parts_of

Term = list[float]


def costs(model: nn.Module, *, text_tokens: int) -> dict[str, Any]:
    """The closed form of `flops_by_layer` for one image, taken apart by the counts that it depends on.

    A prefill costs a sum over layers of what n tokens cost there: a n + b n^2, and in linear attention c for each chunk
    of all tokens that was begun. The three come from the closed form at a few counts, so whatever a model has in its
    layers (windows, class tokens, experts, projectors in between) is in them.

    Args:
        model: only shapes are read; it may be on the meta device.
        text_tokens: tokens of the prompt beside the visual ones.

    Returns:
        chunk, text: for c. parts: "encoder", "projector", "llm" -> fixed (what no count changes), bare (what the bare
        model costs), encoder and llm: [a, b, c] for each count of `Plan.tokens`. The encoder's first count is always
        the whole and costs nothing here.
    """
    anatomy = describe(model)
    whole, depth = anatomy.patches, anatomy.depth("encoder")

    def probe(position: int, count: int) -> dict[str, list[float]]:
        """FLOPs where `count` tokens are left from a position of the encoder on."""
        return flops_by_layer(model, Schedule(encoder={position - 1: count}), text_tokens=text_tokens)

    middle = (whole + 1) // 2
    bare = flops_by_layer(model, text_tokens=text_tokens)
    out: dict[str, Any] = {}
    for part in PARTS:
        out[part] = {"encoder": [[0.0] * 3] * (depth + 1), "llm": [[0.0] * 3] * anatomy.depth("llm")}
    for part in ("encoder", "projector"):
        later = {1: 0.0, middle: 0.0}
        for position in range(depth, 0, -1):
            # What is saved from here on, less what is saved behind it.
            saved = {count: parts_of(bare)[part] - parts_of(probe(position, count))[part] for count in later}
            own = {count: saved[count] - later[count] for count in later}
            out[part]["encoder"][position] = _polynomial(own, whole)
            later = saved
    # All layers of the LLM at once, with fewer tokens from the first on.
    counts = sorted({max(1, count) for count in (1, middle, whole - 2, whole - 1)})
    found = {count: probe(depth, count)["llm"] for count in counts}
    for layer in range(anatomy.depth("llm")):
        saved = {count: bare["llm"][layer] - found[count][layer] for count in counts}
        if layer in anatomy.linear and whole > 2:
            out["llm"]["llm"][layer] = _chunked(saved, whole, text_tokens)
        else:
            out["llm"]["llm"][layer] = _polynomial({count: saved[count] for count in (1, middle)}, whole)
    chunks = -(-(text_tokens + whole) // CHUNK)
    for part, total in parts_of(bare).items():
        terms = [*out[part]["encoder"], *out[part]["llm"]]
        changing = sum(a * whole + b * whole * whole + c * chunks for a, b, c in terms)
        out[part] |= {"fixed": total - changing, "bare": total}
    return {"chunk": CHUNK, "text": text_tokens, "parts": out}


def _polynomial(saved: dict[int, float], whole: int) -> Term:
    """a, b of a n + b n^2 from what counts below the whole save."""
    slopes = [(count, saving / (whole - count)) for count, saving in sorted(saved.items()) if count < whole]
    if not slopes:
        return [0.0, 0.0, 0.0]
    (low, first), (high, second) = slopes[0], slopes[-1]
    square = (second - first) / (high - low) if high > low else 0.0
    return [first - square * (whole + low), square, 0.0]


def _chunked(saved: dict[int, float], whole: int, text: int) -> Term:
    """a, c of a n + c ceil((text + n) / chunk)."""
    chunks = {count: -(-(text + count) // CHUNK) for count in (1, whole - 1, whole)}
    within = chunks[whole] == chunks[whole - 1]  # or a chunk begins between the two
    each = saved[whole - 1] if within else saved[whole - 2] - saved[whole - 1]
    begun = chunks[whole] - chunks[1]
    return [each, 0.0, (saved[1] - each * (whole - 1)) / begun if begun else 0.0]
