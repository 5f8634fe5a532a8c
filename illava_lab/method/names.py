"""Names of strategies, read from their files without running them: the command line answers before torch is loaded."""

from __future__ import annotations

import ast
import difflib
import pkgutil
import sys
from collections.abc import Collection, Iterator
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from illava_lab.errors import LabError

GROUP = "illava_lab.strategies"
OWN = "illava_lab.strategies"  # the lab's own entry, and its package
REGISTRY = "illava_lab.method.registry"


class _NotPlain(Exception):
    """Only running the file tells which names it registers."""


def known(name: str) -> bool:
    """Whether one of the lab's own strategies has this name; False where only the registry can tell.

    That is so where other distributions bring strategies, where the registry is loaded already, and where a file of
    the lab's own does not write its names down plainly.

    Raises:
        LabError: there is no such strategy; the sentence is that of `get_strategy`.
    """
    own = own_names()
    if own is None or REGISTRY in sys.modules:
        return False
    if name in own or pair(name, own):
        return True
    if any(entry.value != OWN for entry in entry_points(group=GROUP)):
        return False
    raise LabError(unknown("strategy", name, own))


def pair(name: str, known: Collection[str]) -> tuple[str, str] | None:
    """The strategies of encoder and LLM in a name such as "tome+fastv"; None where it is no such name."""
    cuts = (i for i, sign in enumerate(name) if sign == "+")
    found = ((name[:i].strip(), name[i + 1 :].strip()) for i in cuts)
    return next((both for both in found if both[0] in known and both[1] in known), None)


@cache
def own_names() -> tuple[str, ...] | None:
    """The lab's own strategies, "none" first and then in alphabetical order; None where their files do not tell."""
    spec = find_spec(OWN)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    names: list[str] = []
    try:
        for folder in folders:
            for module in pkgutil.iter_modules([folder]):
                if module.ispkg:
                    raise _NotPlain
                if module.name != "__main__":
                    names += _registered(ast.parse((Path(folder) / f"{module.name}.py").read_bytes()))
    except (_NotPlain, OSError, SyntaxError, ValueError):
        return None
    if not names or len(set(names)) < len(names):  # of two files with one name, the registry has something to say
        return None
    return tuple(sorted(names, key=in_order))


def in_order(name: str) -> tuple[bool, str]:
    """Sort key: "none" first, then the alphabet."""
    return name != "none", name


def unknown(what: str, name: object, known: Collection[str], note: str = "") -> str:
    """The sentence for a name that nothing has, with the nearest ones.

    Args:
        what: what it should name, such as "strategy".
        known: all names that there are.
        note: what else the person should know; comes last.
    """
    near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"unknown {what} {name!r}{hint} Known: {', '.join(known)}{note}"


def _registered(tree: ast.Module) -> Iterator[str]:
    """The names under which a file's classes are registered by decorator."""
    for node in ast.walk(tree):
        renamed = isinstance(node, ast.alias) and node.name == "register" and node.asname
        if renamed or (isinstance(node, ast.Call) and _is_register(node.func)):
            raise _NotPlain
        if isinstance(node, ast.ClassDef) and any(map(_is_register, node.decorator_list)):
            yield _literal_name(node)


def _is_register(node: ast.expr) -> bool:
    return "register" in (getattr(node, "id", None), getattr(node, "attr", None))


def _literal_name(cls: ast.ClassDef) -> str:
    for line in cls.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        value = getattr(line, "value", None)
        if any(getattr(target, "id", None) == "name" for target in targets):
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value
            break
    raise _NotPlain
