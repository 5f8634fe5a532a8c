"""The registry: every strategy that is installed, by name.

One way in: the entry-point group ``illava_lab.strategies``. An entry names a package (every module of it is imported)
or a class. The lab's own `strategies` package is the first entry; other packages add theirs.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
from functools import cache
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from illava_lab.errors import LabError
from illava_lab.strategy import STAGES, Strategy

GROUP = "illava_lab.strategies"

_registered: dict[str, type[Strategy]] = {}
_broken: dict[str, str] = {}

S = TypeVar("S", bound=type[Strategy])


def register(cls: S) -> S:
    """Class decorator: make a strategy known under its `name`. Defining the same class again replaces it.

    Raises:
        LabError: not a Strategy, no name, an unknown stage, or a name that another class holds.
    """
    if not (isinstance(cls, type) and issubclass(cls, Strategy)):
        raise LabError(f"register expects a subclass of Strategy or Scorer, got {cls!r}")
    if not cls.name:
        raise LabError(f'{cls.__name__} needs a name, for example: name = "{cls.__name__.lower()}"')
    wrong = [stage for stage in cls.stages if stage not in STAGES]
    if wrong or (not cls.stages and cls.kind != "none"):
        raise LabError(f"{cls.__name__}.stages must be taken from {STAGES}, got {cls.stages!r}")
    held = _registered.get(cls.name)
    if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
        raise LabError(
            f"the name {cls.name!r} is taken by {held.__module__}.{held.__qualname__}; "
            f"give {cls.__module__}.{cls.__qualname__} another name"
        )
    _registered[cls.name] = cls
    return cls


def strategies() -> dict[str, type[Strategy]]:
    """All strategies by name, in alphabetical order with "none" first."""
    _discover()
    return dict(sorted(_registered.items(), key=lambda item: (item[0] != "none", item[0])))


def broken_plugins() -> dict[str, str]:
    """Plug-ins that could not be loaded: entry or module name -> reason. The lab starts without them."""
    _discover()
    return dict(_broken)


def get_strategy(name: str) -> type[Strategy]:
    """The class registered as `name`; call it with settings to get a strategy.

    Raises:
        LabError: no such strategy; names the nearest ones.
    """
    known = strategies()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.4)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise LabError(f"unknown strategy {name!r}{hint} Known: {', '.join(known)}")


def make_strategy(strategy: str | Strategy | type[Strategy]) -> Strategy:
    """A strategy from its name, its class or an instance."""
    if isinstance(strategy, str):
        return get_strategy(strategy)()
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        return strategy()
    if isinstance(strategy, Strategy):
        return strategy
    raise LabError(f"strategy must be a name, a Strategy class or an instance, got {strategy!r}")


def load_file(path: str | Path) -> list[type[Strategy]]:
    """Run a Python file; the strategies that it registers. Those of an earlier run are replaced.

    Raises:
        LabError: there is no such file, it fails, or it registers nothing. Nothing of it is registered then.
    """
    _discover()
    file = Path(path).resolve()
    if not file.is_file():
        raise LabError(f"there is no file {str(path)!r}")
    # A file that is loaded already, such as one of `strategies/`, keeps its module, so that its classes replace themselves.
    loaded = (name for name, module in sys.modules.items() if getattr(module, "__dict__", {}).get("__file__") == str(file))
    name = next((name for name in loaded if name != "__main__"), str(file))
    registered, module_before = dict(_registered), sys.modules.get(name)
    spec = spec_from_file_location(name, file)
    if spec is None:
        raise LabError(f"{str(path)!r} is no Python file")
    sys.modules[name] = module = module_from_spec(spec)
    try:
        # Not through the import system, whose cache of bytecode overlooks a second edit within one second.
        exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
        found = [cls for key, cls in _registered.items() if registered.get(key) is not cls]
        if not found:
            raise LabError("it registers no strategy; put @il.register above the class")
        return found
    except (Exception, SystemExit) as error:  # a stranger's file may fail in any way
        _registered.clear()
        _registered.update(registered)
        del sys.modules[name]
        if module_before is not None:
            sys.modules[name] = module_before
        reason = str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"
        raise LabError(f"{str(path)!r} could not be loaded: {' '.join(reason.split())}") from error


@cache
def _discover() -> None:
    for entry in entry_points(group=GROUP):
        try:
            found = entry.load()
        except Exception as error:  # a stranger's module may fail in any way; it is reported by name
            _broken[entry.name] = f"{type(error).__name__}: {error}"
            continue
        if isinstance(found, ModuleType):
            _import_modules(found)
        else:
            _attempt(entry.value, lambda found=found: register(found))


def _import_modules(package: ModuleType) -> None:
    for info in pkgutil.iter_modules(getattr(package, "__path__", [])):
        name = f"{package.__name__}.{info.name}"
        _attempt(name, lambda name=name: importlib.import_module(name))


def _attempt(name: str, load) -> None:
    try:
        load()
    except Exception as error:  # as above
        _broken[name] = f"{type(error).__name__}: {error}"
