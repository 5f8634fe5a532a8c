"""What a code object does, without where it was written: the same after a comment, a docstring or a line was added."""

from __future__ import annotations

import dis
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import resolve_name
from types import CodeType
from typing import Any

_IDLE = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "RESUME", "PRECALL"})  # they only help the interpreter
_ABOUT = frozenset({"__doc__", "__firstlineno__", "__static_attributes__"})  # what a class body notes of its own text
_JUMPS = frozenset({*dis.hasjrel, *dis.hasjabs})
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_KINDS = 0x3EF  # flags of a code object: *args, **kwargs, generator, coroutine; not whether it is nested


@dataclass
class Names:
    """What code refers to outside itself.

    Attributes:
        globals: names that it looks up in its module, in the order of their first use.
        whole: those of them that it uses otherwise than for an attribute.
        attributes: names of attributes that it asks anything for.
        imports: (level, name) of modules that it imports itself.
    """

    globals: dict[str, None] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    imports: dict[tuple[int, str], None] = field(default_factory=dict)


def described(code: CodeType) -> Iterator[Any]:
    """Everything that decides what the code does: words and numbers, and the constants themselves.

    Constants may be other code objects.
    """
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    arguments = code.co_varnames[: sum(counts[::2]) + bool(code.co_flags & 4) + bool(code.co_flags & 8)]
    yield (counts, arguments, code.co_flags & _KINDS, getattr(code, "co_exceptiontable", b""))
    steps = _steps(code)
    offsets = [step.offset for step in steps]
    for number, step in enumerate(steps):
        if step.opname == "STORE_NAME" and step.argval in _ABOUT:
            continue
        if number + 1 < len(steps) and steps[number + 1].opname == "STORE_NAME" and steps[number + 1].argval in _ABOUT:
            continue
        yield step.opname
        if step.opcode in dis.hasconst:
            yield step.argval
        elif step.opcode in _JUMPS:
            yield bisect_left(offsets, step.argval)
        else:
            yield step.argval if isinstance(step.argval, str) else step.arg


@lru_cache(maxsize=10_000)
def names(code: CodeType) -> Names:
    """What the code refers to, with the functions, classes and comprehensions inside it."""
    found = Names()
    _collect(code, found)
    return found


def _collect(code: CodeType, found: Names) -> None:
    steps = _steps(code)
    for number, step in enumerate(steps):
        following = steps[number + 1].opname if number + 1 < len(steps) else ""
        if step.opname in _GLOBALS:
            found.globals[step.argval] = None
            if following not in _ATTRIBUTES:
                found.whole.add(step.argval)
        elif step.opname in _ATTRIBUTES or step.opname == "IMPORT_FROM":
            found.attributes.add(step.argval)
        elif step.opname == "IMPORT_NAME":
            found.imports[steps[number - 2].argval, step.argval] = None  # the level comes first, then what is wanted
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _collect(constant, found)


def absolute(level: int, name: str, package: str | None) -> str | None:
    """The full name of an imported module; None where it has none."""
    try:
        return resolve_name("." * level + name, package) if level else name
    except ImportError:
        return None


def _steps(code: CodeType) -> list[dis.Instruction]:
    return [step for step in dis.get_instructions(code) if step.opname not in _IDLE]
