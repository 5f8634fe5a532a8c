"""What each command of the command line does, once it is known that it can."""

# Every command imports what it needs itself: some of it takes seconds to load.
from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from illava_lab.paths import quoted

if TYPE_CHECKING:
    from illava_lab.method.keep import Keep
    from illava_lab.method.strategy import Strategy
    from illava_lab.session.answer import Answer
    from illava_lab.session.lab import Lab


def lab(options: Namespace) -> int:
    """Serve JupyterLab until it is stopped."""
    from illava_lab.course.jupyter import open_lab

    return open_lab(options.folder, options.jupyter)


def ask(options: Namespace) -> int:
    """Print one answer, and what was done for it."""
    image = _shown(options)  # a picture that cannot be read shows before a large model is loaded

    from illava_lab.schedules.schedule import Schedule

    answer = _load(options).ask(
        image,
        options.question,
        options.strategy,
        options.keep,
        flops=options.flops,
        preset=options.preset,
        schedule=None if options.schedule is None else Schedule(**options.schedule),
        graphs=options.graphs,
    )
    print(answer.text)
    if answer.strategy != "none":
        print(f"{answer.strategy}, {answer.budget}")
    print(_visual_tokens(answer), _times(answer), sep="; ")
    if options.verbose:
        for step in answer.trace.steps:
            print(f"  {step.stage} layer {step.layer}: {step.before} -> {step.after} visual tokens")
    if answer.note:
        note(answer.note)
    return 0


def _visual_tokens(answer: Answer) -> str:
    trace, images = answer.trace, range(sum(answer.trace.images_per_row))
    encoder = sum(step.stage != "llm" for step in trace.steps)
    before = sum(len(trace.layout(image).boxes) for image in images)
    between, after = (sum(len(trace.sources(image, steps).anchor) for image in images) for steps in (encoder, None))
    return f"visual tokens: encoder {before} -> {between}, LLM {between} -> {after}"


def _times(answer: Answer) -> str:
    timing = answer.timing
    return f"prefill {timing.prefill * 1e3:.0f} ms, {timing.tokens} new tokens, the rest {timing.decode * 1e3:.0f} ms"


def compare(options: Namespace) -> int:
    """Print the table of accuracy, cost and time, and write it with its figures if there is a folder for them."""
    from illava_lab.measuring.compare import compare
    from illava_lab.measuring.distributed import is_first
    from illava_lab.measuring.summary import summary, summary_by_category
    from illava_lab.measuring.task_files import load_task
    from illava_lab.views import plots

    first = is_first()  # of several processes
    task = load_task(options.task)
    part = task.limited(options.limit)
    lab = _load(options)
    table = compare(
        lab,
        **_methods(options),
        task=task,
        limit=options.limit,
        seed=options.seed,
        batch_size=options.batch_size,
        timing=not options.no_timing,
        graphs=options.graphs,
        out=options.out,
        progress=first and sys.stderr.isatty(),
    )
    if not first:
        return 0
    print(f"model {lab.source!r}, task {task.name!r}: {part.size}")
    print(summary(table), f"Accuracy % by category of question\n{summary_by_category(table)}", sep="\n\n")
    if options.out:
        figure = plots.tradeoff(table)
        written = [options.out / "table.csv", plots.save_html(figure, options.out / "tradeoff.html")]
        written.append(plots.tradeoff_png(table, options.out / "tradeoff.png"))
        _print_written(written)
    return 0


def bench(options: Namespace) -> int:
    """Print the table of speed and memory, and write it if there is a folder for it."""
    image = None if options.image is None else _shown(options)

    from illava_lab.measuring.bench import bench
    from illava_lab.measuring.bench_summary import summary

    lab = _load(options)
    table = bench(
        lab,
        **_methods(options),
        image=image,
        batch_sizes=options.batch_sizes,
        text_tokens=options.text_tokens,
        new_tokens=options.new_tokens,
        answers=options.answers,
        rounds=options.rounds,
        graphs=options.graphs,
        largest_batch=options.largest_batch,
        seed=options.seed,
        out=options.out,
        progress=sys.stderr.isatty(),
    )
    print(repr(lab), summary(table), sep="\n\n")
    if options.out:
        _print_written([options.out / "table.csv", options.out / "bench.json"])
    return 0


def check(options: Namespace) -> int:
    """Print which promises strategies keep; 1 if one is broken."""
    from illava_lab.testing import check_strategies

    given, failed = (options.strategies, False) if options.strategies else _every_strategy()
    report = check_strategies(given, raises=False)
    print(report)
    return 0 if report.passed and not failed else 1


def _every_strategy() -> tuple[list[Any], bool]:
    """All that can be checked, and whether one fails when it is made; what is left out is noted."""
    from illava_lab.errors import LabError
    from illava_lab.method.declared import needs_settings
    from illava_lab.method.registry import broken_plugins, make_strategy, strategies

    made, failed = [], False
    for name, cls in strategies().items():
        try:
            made.append(make_strategy(cls))
        except LabError as error:
            note(f"{name} is not checked: {error}")
            failed = failed or not needs_settings(cls)
    for plugin, why in broken_plugins().items():
        note(f"the plug-in {plugin} could not be loaded: {why}")
    return made, failed


def strategies(options: Namespace) -> int:
    """Print what is installed, and which plug-ins are broken."""
    from illava_lab.method.registry import broken_plugins, strategies

    rows = [(name, _said(cls, "kind"), _said(cls, "stages"), _said(cls, "paper")) for name, cls in strategies().items()]
    _print_table(("name", "kind", "stages", "paper"), rows)
    for plugin, why in broken_plugins().items():
        note(f"the plug-in {plugin} could not be loaded: {why}")
    return 0


def _said(cls: type[Strategy], attribute: str) -> str:
    """What a class says of itself, for a table; "?" where that cannot be read."""
    from illava_lab.errors import reason, spelled
    from illava_lab.method.declared import declared

    try:
        value = declared(cls, attribute)
        return spelled(" and ".join(value) if attribute == "stages" and value else str(value or "-"))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a stranger's class may fail in any way
        note(f"{cls.__name__}: {reason(error)}")
        return "?"


def presets(options: Namespace) -> int:
    """Print the settings of papers."""
    from illava_lab.schedules.presets import presets

    rows = []
    for name, preset in presets().items():
        stages = {"encoder": preset.encoder, "LLM": preset.llm}
        layers = "; ".join(f"{stage} {_layers(plan)}" for stage, plan in stages.items() if plan)
        rows.append((name, preset.label, layers, preset.source))
    _print_table(("name", "strategy", "layers: kept", "source"), rows)
    return 0


def _layers(plan: dict[int, Keep]) -> str:
    """Such as "5-8: 0.85, 19,21,23: 0.9"; of many different amounts only the first two and the last."""
    same: dict[Keep, list[int]] = {}
    for layer, keep in plan.items():
        same.setdefault(keep, []).append(layer)
    parts = [f"{_numbers(layers)}: {keep}" for keep, layers in same.items()]
    return ", ".join(parts if len(parts) <= 5 else [*parts[:2], "...", parts[-1]])


def _numbers(layers: list[int]) -> str:
    run = len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if run else ",".join(map(str, layers))


# ---------------------------------------------------------------------------------------------- shared
def _methods(options: Namespace) -> dict[str, Any]:
    """The five arguments that compare and bench share: what reduces, and by how much."""
    from illava_lab.method.registry import strategies
    from illava_lab.schedules.schedule import Schedule

    only_presets = options.preset and not (options.keep or options.flops or options.schedule)
    names = options.strategy or (None if only_presets else options.default_strategies)
    return {
        "strategy": list(strategies()) if names == ["all"] else names,
        "keep": options.keep,
        "flops": options.flops,
        "preset": options.preset,
        "schedule": options.schedule and [Schedule(**one) for one in options.schedule],
    }


def _shown(options: Namespace) -> Any:
    """The image or video of the command."""
    from illava_lab.models.images import read_image
    from illava_lab.models.video import SUFFIXES, read_video

    quiet()
    film = options.image.lower().endswith(SUFFIXES)
    return read_video(options.image, options.frames) if film else read_image(options.image)


def _load(options: Namespace) -> Lab:
    from illava_lab.session.load import load

    quiet()
    lab = load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        device_map=options.device_map,
        quantize=options.quantize,
        revision=options.revision,
    )
    if getattr(options, "graphs", False) and (kind := lab.model.device.type) != "cuda":
        note(f"--graphs changes nothing on a {kind} device, only on cuda")
    return lab


def quiet() -> None:
    """Keep off the screen what libraries say to developers."""
    import warnings

    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()


def _print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    lines = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_written(paths: Iterable[Any]) -> None:
    print("Written:", *(quoted(path) for path in paths))


def note(text: str) -> None:
    print(f"illava-lab: note: {text}", file=sys.stderr)
