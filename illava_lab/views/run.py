"""A run as compact JSON: what became of every visual token on the way from the picture to the answer, and what it cost.

What `run_of` gives holds nothing but what JSON has. It is what `widgets.Machine` draws, and what the site stores:

- `version`: 1, of this form.
- `model`, `question`, `strategy` (its name), `label` (with its settings), `budget` (in words), `note` (on words that
  the model does not know), `text_tokens` (of the prompt beside the visual ones).
- `views`: the rows of the encoder. Each has a `name`, its `grid` [height, width], its `window` in the picture ([left,
  top, right, bottom], fractions), and the `picture` as a data: address. Patches are numbered view after view, each in
  raster order.
- `layers`: columns with an entry for each place in the model, in order. `stage` ("patches", "encoder", "unused":
  encoder layers behind the one that the features come from, "projector", "llm", "head"), `layer`, `tokens` (visual
  ones that are left there), `flops` and `bare` (of the prefill, with and without reduction, in percent of the bare
  model's), `cache` (bytes), and `least`: the smallest fraction of the entering tokens that the method can keep there,
  1 where it cannot reduce. Encoder layers reduce behind their attention, LLM layers before theirs.
- `bare_tokens` and `bare_cache`: visual tokens, and bytes of cache, of an LLM layer without reduction.
- `moves`: what changed at a place, `at` that entry of `layers`. The tokens that enter are numbered as the move before
  left them, first the patches; those that leave likewise. Weights are in thousandths, and lists marked (d) hold the
  first number and then differences. `gone` (d): tokens that end here; all others stay in their places and order.
  Where the order changes, or several take one place, there is instead `held` (d): for each token that leaves, whose
  place it takes. `into` (d): for each that is gone, the token that takes most of it, or -1 where it falls (left out
  where all fall); `share`: for those that do not fall, their weight in it. `mixed` (d) and `own`: tokens that leave
  with another weight of their own place than 1000, and that weight. `to` (d), `of` (d) and `more`: token that leaves,
  token that entered, and weight, of whatever else contributes. Lists that would be empty are left out, but for
  `gone`.
- `answer`: its `text`, and `words`: for each of its first steps the most probable [word, probability].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.models.video import ImageOrVideo
from illava_lab.schedules.budget import AnyStrategy, choose
from illava_lab.schedules.flops import flops_by_layer
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.prompt_shape import prompt_shape
from illava_lab.session.asked import at_least_one
from illava_lab.session.lab import Lab
from illava_lab.session.prompt import schedule_for, text_tokens
from illava_lab.trace.flow import Move, prompt_flow
from illava_lab.trace.trace import Trace
from illava_lab.views.moves import encoded
from illava_lab.views.seen import seen_views

Run: TypeAlias = dict[str, Any]
VERSION = 1


def run_of(
    lab: Lab,
    image: ImageOrVideo | Sequence[ImageOrVideo],
    question: str,
    strategy: AnyStrategy | None = None,
    keep: float | None = None,
    *,
    flops: float | None = None,
    preset: str | None = None,
    schedule: Plan | None = None,
    max_new_tokens: int = 16,
) -> Run:
    """Ask one question, and write down everything that happened; the module says in which form.

    Arguments and errors are those of `Lab.ask`.
    """
    chosen, budget = choose(strategy, keep, flops, preset, schedule)
    shown = at_least_one("image", image)
    inputs = lab.inputs([shown], [question])
    plan = schedule_for(lab.model, chosen, budget, inputs)
    answer = lab.ask(shown, question, chosen, schedule=plan, max_new_tokens=max_new_tokens)
    trace, text = answer.trace, text_tokens(lab.model, inputs)
    layouts = [trace.layout(number) for number in range(trace.images_per_row[0])]
    moves = prompt_flow(trace)
    layers = _layers(lab.model, chosen, plan, trace, text)
    _count(layers, moves)
    places = {
        (stage, layer): at for at, (stage, layer) in enumerate(zip(layers["stage"], layers["layer"], strict=True))
    }
    bare = prompt_shape(describe(lab.model), None, text, layouts)
    return {
        "version": VERSION,
        "model": lab.source,
        "question": question,
        "strategy": chosen.name,
        "label": chosen.label,
        "budget": str(budget),
        "note": answer.note,
        "text_tokens": bare.length(0) - sum(visual.llm[0] for visual in bare.visuals),
        "views": [
            {"name": view.name, "grid": list(view.grid), "window": list(view.window), "picture": view.webp()}
            for view in seen_views(lab, shown, layouts, inputs)
        ],
        "layers": layers,
        "bare_tokens": sum(layout.tokens for layout in layouts),
        "bare_cache": bare.length(0) * _token_bytes(lab.model),
        "moves": [{"at": places[_entry(move)], **encoded(move)} for move in moves if move.changes],
        "answer": {
            "text": answer.text,
            "words": [[[word.text, round(word.probability, 4)] for word in step] for step in answer.words],
        },
    }


def _entry(move: Move) -> tuple[str, int]:
    """The stage and layer under which `layers` has the place of a move."""
    return ("patches", 0) if move.place == "image" else (move.place, move.layer)


def _layers(model: Any, strategy: Strategy, plan: Plan, trace: Trace, text: int) -> dict[str, list[Any]]:
    """The columns of `layers`, without the tokens."""
    anatomy = describe(model)
    layouts = [trace.layout(image) for image in range(trace.images_per_row[0])]
    flops = flops_by_layer(model, plan, strategy, text_tokens=text, trace=trace)
    bare = flops_by_layer(model, text_tokens=text, layouts=layouts)
    lengths = prompt_shape(anatomy, plan, text, None, trace).length
    whole, token = sum(map(sum, bare.values())) / 100, _token_bytes(model)
    free = {"encoder": strategy.smallest_keep, "llm": strategy.smallest_keep, "image": 0.0}
    least = {stage: share if stage in strategy.stages else 1.0 for stage, share in free.items()}
    rows: list[tuple[str, int, float, float, int, float]] = [
        ("patches", 0, flops["patches"][0], bare["patches"][0], 0, least["image"])
    ]
    for layer, cost in enumerate(flops["encoder"]):
        used = layer < anatomy.encoder_depth
        rows.append(
            ("encoder" if used else "unused", layer, cost, bare["encoder"][layer], 0, least["encoder"] if used else 1.0)
        )
    behind, bare_behind = (parts["pooling"][0] + parts["projector"][0] for parts in (flops, bare))
    rows.append(("projector", 0, behind, bare_behind, 0, 1.0))
    places = anatomy.llm_places(strategy.first_llm_layer)
    for layer, cost in enumerate(flops["llm"]):
        may = least["llm"] if layer in places else 1.0
        held = 0 if layer in anatomy.linear else lengths(layer) * token  # the state of such a layer does not grow
        rows.append(("llm", layer, cost, bare["llm"][layer], held, may))
    rows.append(("head", 0, flops["head"][0], bare["head"][0], 0, 1.0))
    return {
        "stage": [row[0] for row in rows],
        "layer": [row[1] for row in rows],
        "tokens": [],
        "flops": [round(row[2] / whole, 3) for row in rows],
        "bare": [round(row[3] / whole, 3) for row in rows],
        "cache": [row[4] for row in rows],
        "least": [row[5] for row in rows],
    }


def _count(layers: dict[str, list[Any]], moves: Sequence[Move]) -> None:
    """Fill in the visual tokens that are left at each place."""
    after = {_entry(move): len(move.anchor) for move in moves}
    count = moves[0].weights.shape[1]
    for place in zip(layers["stage"], layers["layer"], strict=True):
        count = after.get(place, count)
        layers["tokens"].append(count)


def _token_bytes(model: Any) -> int:
    """Bytes that one token takes in the cache of one LLM layer."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_key_value_heads * size * model.dtype.itemsize)
