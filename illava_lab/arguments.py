"""What may stand on the command line: each word by itself, then all of them together. Without torch."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from illava_lab.errors import LabError
from illava_lab.measuring import task_names
from illava_lab.method.keep import check_keep
from illava_lab.paths import EMBEDDED, embedded_model, is_file, is_folder, quoted

STAGES = ("encoder", "llm", "image")
BUDGETS = ("keep", "flops", "preset", "schedule")

HUB_ID = "llava-hf/llava-1.5-7b-hf"
RANDOM = "random:"

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------- words
def fraction(text: str) -> float:
    """A number in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"must be in (0, 1], got {text!r}")
    return value


def count(text: str, least: int = 1) -> int:
    """A whole number of at least `least`."""
    try:
        value = int(text)
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is no whole number") from None
    if value < least:
        raise ArgumentTypeError(f"must be at least {least}, got {text!r}")
    return value


def seed(text: str) -> int:
    """A whole number of at least 0."""
    return count(text, least=0)


def name(text: str) -> str:
    """A name, without the blanks around it."""
    if not text.strip():
        raise ArgumentTypeError(f"must be a name, got {text!r}")
    return text.strip()


def folder(text: str) -> Path:
    """A folder that is there or can be made."""
    if not text:  # which Path would read as the current folder
        raise ArgumentTypeError("must be a folder, got ''")
    if not is_folder(text):
        try:
            if Path(text).exists():
                raise ArgumentTypeError(f"must be a folder, but {quoted(text)} is a file")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ArgumentTypeError(f"must be a folder, but {quoted(text)} cannot be one: {why}") from None
    return Path(text)


def several(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A list with commas between its entries, none of them twice."""

    def read(text: str) -> list[T]:
        return _no_twice([one(part) for part in text.split(",")])

    return read


def schedule(text: str) -> dict[str, Any]:
    """What `Schedule` takes, from a JSON object such as ``{"encoder": {"3": 0.8}, "llm": {"2": 0.5}}``."""
    return _schedule(_json(text))


def schedules(text: str) -> list[dict[str, Any]]:
    """One such object, or a JSON list of them."""
    given = _json(text)
    return _no_twice([_schedule(one) for one in (given if isinstance(given, list) else [given])])


def _json(text: str) -> Any:
    def only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _no_twice([key for key, _ in pairs])
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=only_once)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is no JSON: {error}") from None


def _schedule(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict) or not set(given) <= set(STAGES):
        example = '{"encoder": {"3": 0.8}, "llm": {"2": 0.5}}'
        raise ArgumentTypeError(f"must be an object with {', '.join(STAGES)}, such as {example}; got {given!r}")
    try:
        for stage, keep in given.items():
            if stage == "image":
                check_keep(keep, stage)
            elif not isinstance(keep, dict):
                raise ArgumentTypeError(
                    f'{stage} must map layers to what they keep, such as {{"2": 0.5}}, got {keep!r}'
                )
            else:
                given[stage] = {_layer(stage, layer): share for layer, share in keep.items()}
                for layer, share in given[stage].items():
                    check_keep(share, f"{stage} layer {layer}")
    except LabError as error:
        raise ArgumentTypeError(str(error)) from None
    return given


def _layer(stage: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or text != str(int(text)):
        raise ArgumentTypeError(f"{stage}: layers are whole numbers, got {text!r}")
    return int(text)


def _no_twice(values: list[T]) -> list[T]:
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ArgumentTypeError(f"{twice[0]!r} is given twice")
    return values


# ---------------------------------------------------------------------------------------------- all of them
def check(options: Namespace) -> None:
    """Refuse what cannot be while that is quick: names that nothing has, files that are not there, contradictions.

    Raises:
        LabError: with the sentence of the Python function wherever that has one.
    """
    if "keep" in options:
        names, presets = _listed(options.strategy), _listed(options.preset)
        for preset in presets:
            _check_preset(preset)
        for strategy in names:
            if names != ["all"] or options.command == "ask":
                _check_strategy(strategy)
        if options.command == "ask":
            _check_single(names, presets, options)
        _check_spent(names, options)
        _check_model(options.model)
    if options.command == "check":
        for given in options.strategies:
            _check_strategy_or_file(given)
    if options.command == "ask" and not options.question.strip():
        raise LabError(f"question must be a sentence, got {options.question!r}")
    shown = getattr(options, "image", None)
    if shown is not None and not is_file(shown):
        raise LabError(f"no image file at {quoted(shown)}")
    if options.command == "compare" and not is_file(task_names.path_of(options.task)):
        raise LabError(task_names.missing(options.task))


def _listed(given: Any) -> list[Any]:
    return [] if given is None else given if isinstance(given, list) else [given]


def _check_strategy(given: str) -> None:
    from illava_lab.method import names

    if not names.known(given):
        from illava_lab.method.registry import get_strategy, strategies  # loads torch

        if names.pair(given, strategies()) is None:
            get_strategy(given)


def _check_strategy_or_file(given: str) -> None:
    if not given.endswith(".py") and "/" not in given:
        _check_strategy(given)
    elif not given.endswith(".py") or not is_file(given):
        raise LabError(f"there is no Python file {quoted(given)}")


def _check_preset(given: str) -> None:
    from illava_lab.schedules.presets import get_preset

    get_preset(given)


def _check_single(names: list[str], presets: list[str], options: Namespace) -> None:
    """What only one answer cannot have: two budgets, or two strategies."""
    from illava_lab.schedules.presets import get_preset

    given = [f"--{kind}" for kind in BUDGETS if getattr(options, kind) is not None]
    if len(given) > 1:
        raise LabError(f"give one budget of --keep, --flops, --preset and --schedule; got {' and '.join(given)}")
    if names and presets and names[0] != get_preset(presets[0]).strategy:
        label = get_preset(presets[0]).label
        raise LabError(f"the preset {presets[0]!r} runs {label}, not {names[0]!r}: leave one of the two out")


def _check_spent(names: list[str], options: Namespace) -> None:
    """A budget needs somebody to spend it, unless it keeps everything."""
    if names not in ([], ["none"]) or (not names and options.command != "ask"):
        return
    for kind in ("keep", "flops", "schedule"):
        for amount in _listed(getattr(options, kind)):
            reduces = any(amount.values()) if kind == "schedule" else amount < 1
            if reduces:
                shown = f"{amount:g}" if kind != "schedule" else json.dumps(amount)
                who = "'none' keeps every token" if names else "without one every token is kept"
                raise LabError(f"--{kind} {shown} needs a --strategy that reduces, such as illava; {who}")


def _check_model(given: str | None) -> None:
    if given is None:
        return
    if given.startswith(RANDOM):
        _check_configuration(given.removeprefix(RANDOM))
    elif given.startswith(EMBEDDED):
        embedded_model(given)
    elif is_file(given):
        raise LabError(f"{quoted(given)} is a file; give the folder of a checkpoint or a hub id such as {HUB_ID}")
    elif not (given and is_folder(given)) and not _could_be_on_the_hub(given):
        raise LabError(f"{quoted(given)} is neither a folder nor a hub id such as {HUB_ID}")


def _could_be_on_the_hub(given: str) -> bool:
    return ":" in given or (given.count("/") == 1 and not given.startswith((".", "/", "~")))


def _check_configuration(given: str) -> None:
    from illava_lab.paths import data_dir

    known = sorted(path.stem for path in (data_dir() / "configs").glob("*.json"))
    if not (is_file(given) if given.endswith(".json") else given in known):
        there = ", ".join(known)
        raise LabError(
            f"no configuration for {quoted(RANDOM + given)}; there are {there}, or give the path of a JSON file"
        )
