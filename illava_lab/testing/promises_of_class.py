"""Promises of the class: what it says of itself, and its settings."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from typing import Any, get_args

from illava_lab.errors import LabError
from illava_lab.method.registry import KINDS, strategies
from illava_lab.method.strategy import Paper, Strategy
from illava_lab.method.tokens import STAGES, Medium
from illava_lab.testing.cases import Case
from illava_lab.testing.faults import same
from illava_lab.testing.promise import promise
from illava_lab.testing.subject import Subject, once


# ---- the class
@promise(once)
def metadata(subject: Subject, case: None) -> str | None:
    """Name, kind, stages, paper and docstring say what it is."""
    own, cls = subject.strategy, subject.cls
    if not isinstance(own.name, str) or not own.name or own.name != own.name.strip():
        return f'name is {own.name!r}: give it the word that users type, such as name = "my-method"'
    if own.kind not in KINDS:
        return f'kind is {own.kind!r}: it must be "prune", "merge" or "pool"'
    known = isinstance(own.stages, tuple) and all(stage in STAGES for stage in own.stages)
    if not known or not (own.stages or own.kind == "none"):
        return f"stages is {own.stages!r}: it must be a tuple taken from {STAGES}"
    if own.paper is not None and not isinstance(own.paper, Paper):
        return f"paper is {own.paper!r}: it must be a Paper(title, arxiv, year), or None"
    says = (cls.__doc__ or "").strip()
    if not says or says.startswith(f"{cls.__name__}("):  # what dataclass makes up
        return "the class has no docstring: say in one sentence what is kept, then the formula and its source"
    if own.memory not in ("linear", "quadratic"):
        return f'memory is {own.memory!r}: it must be "linear" or "quadratic"'
    for attribute, kind in (("averages", bool), ("proportional_attention", bool), ("proportional_in_llm", bool)):
        if not isinstance(getattr(own, attribute), kind):
            return f"{attribute} is {getattr(own, attribute)!r}: it must be True or False"
    if type(own.first_llm_layer) is not int or own.first_llm_layer < 0:
        return (
            f"first_llm_layer is {own.first_llm_layer!r}: it must be a whole number, 0 where no attention is asked for"
        )
    if not isinstance(own.media, tuple) or not own.media or not set(own.media) <= set(get_args(Medium)):
        return f"media is {own.media!r}: it must be a tuple taken from {get_args(Medium)}"
    if not 0 <= own.smallest_keep < 1:
        return f"smallest_keep is {own.smallest_keep!r}: it must be a fraction, 0 for no limit"
    return None


def _settings(subject: Subject) -> list[str]:
    return [field.name for field in dataclasses.fields(subject.strategy)]


@promise(once)
def settings_validated(subject: Subject, case: None) -> str | None:
    """Settings cannot be changed later, and a choice that does not exist is refused with a LabError."""
    if not dataclasses.is_dataclass(subject.cls) or not vars(subject.cls)["__dataclass_params__"].frozen:
        return "the class is no frozen dataclass: do not decorate it again, subclasses of Strategy are one already"
    for name in _settings(subject):
        if not isinstance(getattr(subject.strategy, name), str):
            continue
        try:
            replace(subject.strategy, **{name: "no such choice"})
        except LabError:
            continue
        except Exception as error:
            return f"{name}='no such choice' raises {type(error).__name__}, not LabError: use one_of in __post_init__"
        return f"{name}='no such choice' is accepted: add one_of({name!r}, self.{name}, (...)) to __post_init__"
    return None


def variants(strategy: Strategy) -> list[Strategy]:
    """The strategy, and one more for each other value of each setting that is a choice: a word, or True and False."""
    out = [strategy]
    for field in dataclasses.fields(strategy):
        value = getattr(strategy, field.name)
        allowed: list[Any] = [not value] if isinstance(value, bool) else []
        if isinstance(value, str):
            try:
                replace(strategy, **{field.name: "no such choice"})
            except LabError as error:  # the message of one_of names them
                allowed = re.findall(r"'([^']*)'", str(error).partition(", got ")[0])
        out += [replace(strategy, **{field.name: other}) for other in allowed if other != value]
    return out


def _other_settings(strategy: Strategy) -> list[Strategy]:
    """`variants`, and instances with other numbers, where the class accepts them."""
    out = variants(strategy)
    for field in dataclasses.fields(strategy):
        value = getattr(strategy, field.name)
        if type(value) in (int, float):
            try:
                out.append(replace(strategy, **{field.name: value + 1 if type(value) is int else value / 2}))
            except LabError:
                continue
    return out


@promise(once)
def repr_round_trips(subject: Subject, case: None) -> str | None:
    """The repr is the configuration: evaluating it gives an equal strategy."""
    known = strategies()  # others, of which it may be made
    for strategy in _other_settings(subject.strategy):
        text = repr(strategy).replace(subject.cls.__qualname__, subject.cls.__name__, 1)
        try:
            again = eval(text, {**{cls.__name__: cls for cls in known.values()}, subject.cls.__name__: subject.cls})
        except Exception as error:
            return f"repr gives {text}, which fails with {type(error).__name__}: leave __repr__ to the dataclass"
        if again != strategy:
            return f"repr gives {text}, which makes another strategy: every setting must be a field that __init__ takes"
    return None


@promise(lambda subject: subject.cases(4, 9)[:8])
def instances_independent(subject: Subject, case: Case) -> str | None:
    """An instance with other settings changes nothing for this one, and mapping leaves no trace on it."""
    replace(subject.strategy)  # the newest instance, should that matter, has the settings of this one
    before, state = subject.map(case), repr(vars(subject.strategy))
    for other in _other_settings(subject.strategy)[1:]:
        try:
            other.map(case.tokens(), case.keep)
        except Exception:
            continue  # other settings may need another place
    if repr(vars(subject.strategy)) != state:
        return "map changes the attributes of the strategy: compute what it needs from the tokens, each time"
    if not same(before, subject.map(case)):
        return "once there are instances with other settings this one gives another map: keep settings in self only"
    return None
