"""The registry: every strategy that is installed, by name.

One way in: the entry-point group ``illava_lab.strategies``. An entry names a package (every module of it is imported)
or a class. The lab's own `illava_lab.strategies` is the first entry; other packages add theirs. A name belongs to the
class that has it first, and the lab's own come first.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from illava_lab.errors import LabError, reason
from illava_lab.method.composed import Composed
from illava_lab.method.declared import declared
from illava_lab.method.names import GROUP, OWN, in_order, pair, unknown
from illava_lab.method.strategy import Scorer, Strategy
from illava_lab.method.tokens import STAGES

KINDS = ("none", "prune", "merge", "pool")

_registered: dict[str, type[Strategy]] = {}
_broken: dict[str, str] = {}

S = TypeVar("S", bound=type[Strategy])


def register(cls: S) -> S:
    """Class decorator: make a strategy known under its `name`.

    Defining the same class again replaces it, and so does any class of a notebook or script that takes the name of an
    earlier one there: whoever runs a changed cell means the change.

    Raises:
        LabError: not a Strategy, no name (or one that is a property), an unknown kind or stage, a property that fails
            with the default settings, or a name that another class holds.
    """
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        raise LabError(f"register expects a subclass of Strategy or Scorer, got {cls!r}")
    if not (type(cls.name) is str and cls.name.strip() and cls.name.isprintable()):
        raise LabError(f'{cls.__name__} needs a name, for example: name = "{cls.__name__.lower()}"')
    # What only an instance knows is taken for right here; `check_strategy` looks at instances.
    kind, stages = declared(cls, "kind", unknown="none"), declared(cls, "stages", unknown=STAGES)
    if kind not in KINDS:
        raise LabError(f"{cls.__name__}.kind must be one of {KINDS}, got {kind!r}")
    known = isinstance(stages, tuple) and all(stage in STAGES for stage in stages)
    if not known or (not stages and kind != "none"):
        raise LabError(f"{cls.__name__}.stages must be taken from {STAGES}, got {stages!r}")
    if not cls.__module__.startswith(f"{OWN}."):
        _discover(own=True)
    held = _registered.get(cls.name)
    if held is not None and not _replaces(cls, held):
        raise LabError(
            f"the name {cls.name!r} is taken by {held.__module__}.{held.__qualname__}; "
            f"give {cls.__module__}.{cls.__qualname__} another name"
        )
    _registered[cls.name] = cls
    return cls


def _replaces(new: type[Strategy], held: type[Strategy]) -> bool:
    same_name = new.__qualname__ == held.__qualname__
    return new.__module__ == held.__module__ and (same_name or new.__module__ == "__main__")


def strategies() -> dict[str, type[Strategy]]:
    """All strategies by name, in alphabetical order with "none" first."""
    _discover(own=True)
    _discover(own=False)
    return dict(sorted(_registered.items(), key=lambda item: in_order(item[0])))


def broken_plugins() -> dict[str, str]:
    """Plug-ins that could not be loaded: entry or module name -> reason, one line. The lab starts without them.

    The name of an entry is followed by its distribution, in brackets, where several distributions chose the same.
    """
    strategies()
    return dict(_broken)


def get_strategy(name: str) -> type[Strategy]:
    """The class registered as `name`; call it with settings to get a strategy.

    Raises:
        LabError: no such strategy; names the nearest ones, and the plug-ins that could not be loaded.
    """
    known = strategies()
    if isinstance(name, str) and name in known:
        return known[name]
    broken = ", ".join(f"{plugin} ({why})" for plugin, why in _broken.items())
    missing = f". Plug-ins that could not be loaded: {broken}" if broken else ""
    raise LabError(unknown("strategy", name, known, missing))


def make_strategy(strategy: str | Strategy | type[Strategy]) -> Strategy:
    """A strategy from its name, its class or an instance; a name of two, "tome+fastv", is that of a composition.

    Raises:
        LabError: no such strategy, a base class, a setting without a default, one that fails when it is made, or
            something else than these three.
    """
    made: object = strategy
    if isinstance(strategy, str):
        both = None if strategy in strategies() else pair(strategy, strategies())
        made = Composed(*map(make_strategy, both)) if both else get_strategy(strategy)
    if isinstance(made, type) and issubclass(made, Strategy):
        try:
            made = made()
        except TypeError as error:
            text = (
                f"{strategy!r} cannot be made without settings ({error}); give every setting a default, or an instance"
            )
            raise LabError(text) from error
        except (LabError, KeyboardInterrupt):
            raise
        except BaseException as error:  # as in `_attempt`
            raise LabError(f"{strategy!r} cannot be made: {reason(error)}") from error
    if not isinstance(made, Strategy):
        raise LabError(f"strategy must be a name, a Strategy class or an instance, got {strategy!r}")
    if type(made) in (Strategy, Scorer):
        raise LabError(f"{type(made).__name__} is a base class and does nothing by itself; strategy must be a subclass")
    return made


def load_file(path: str | Path) -> list[type[Strategy]]:
    """Run a Python file; the strategies that it registers. They replace those of an earlier run.

    Raises:
        LabError: there is no such file, it fails, or it registers nothing. The registry is then as it was.
    """
    strategies()
    file = Path(path).resolve()
    if not file.is_file() or file.suffix != ".py":
        raise LabError(f"there is no Python file {str(path)!r}")
    # A file that is imported already, such as one of `strategies/`, keeps the name of its module.
    modules = {name: getattr(module, "__dict__", {}).get("__file__") for name, module in sys.modules.items()}
    name = next((name for name, origin in modules.items() if origin == str(file) and name != "__main__"), str(file))
    registered, imported = dict(_registered), sys.modules.get(name)
    spec = spec_from_file_location(name, file)
    assert spec is not None  # the name ends in .py
    module = sys.modules[name] = module_from_spec(spec)
    try:
        for held in [held for held, cls in registered.items() if cls.__module__ == name]:
            del _registered[held]
        # Not by the import system, whose cache of bytecode overlooks a second edit within one second.
        exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
        found = [cls for key, cls in _registered.items() if registered.get(key) is not cls]
        if not found:
            raise LabError("it registers no strategy; put @il.register above the class")
        return found
    except BaseException as error:  # as in `_attempt`
        _registered.clear()
        _registered.update(registered)
        if imported is None:
            del sys.modules[name]
        else:
            sys.modules[name] = imported
        if isinstance(error, KeyboardInterrupt):
            raise
        raise LabError(f"{str(path)!r} could not be loaded: {reason(error)}") from error


@cache
def _discover(own: bool) -> None:
    """Load the lab's own strategies or everybody else's, once, in an order that does not depend on the machine."""
    entries = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    entries = [entry for entry in entries if (entry.value == OWN) is own]
    uses = Counter(entry.name for entry in entries)
    for entry in entries:
        source = entry.dist.name if entry.dist else entry.value
        _attempt(entry.name if uses[entry.name] == 1 else f"{entry.name} ({source})", partial(_load, entry))


def _load(entry: EntryPoint) -> None:
    found = entry.load()
    if not isinstance(found, ModuleType):
        register(found)
        return
    # Sorted, so that a file comes before its copies ("fastv", "fastv-Copy1") and keeps its name. Importing __main__
    # would run the package's own command.
    modules = sorted(info.name for info in pkgutil.iter_modules(getattr(found, "__path__", [])))
    for name in (f"{found.__name__}.{module}" for module in modules if module != "__main__"):
        _attempt(name, partial(importlib.import_module, name))


def _attempt(name: str, load: Callable[[], object]) -> None:
    try:
        load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a stranger's module may fail in any way, even sys.exit; it is reported by name
        _broken[name] = reason(error)
