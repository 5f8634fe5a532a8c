"""A fingerprint of a strategy: of all the code and values that decide what it computes, as they are loaded.

Not of files, which may say something else by now. From the strategy the digest follows what its code refers to: its
class and its bases with all that they hold; its settings; functions, classes and values that the code names, in its own
module and in others of the same project, with their defaults and closures. Of the standard library only names count, of
installed libraries names and versions. What the code does not refer to does not matter, nor do comments, docstrings and
places in a file.

The same in every process: nothing in it is an address, or comes in the order of a set.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import types
import weakref
from collections import deque
from collections.abc import Iterable
from dataclasses import Field
from typing import Any

import numpy as np
import torch

from illava_lab.measuring import bytecode, state
from illava_lab.measuring.origin import Origin, origin_of, version_of
from illava_lab.method import registry
from illava_lab.method.composed import Composed

DEEPEST = 60  # containers in containers
_MADE_IN_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_PLAIN = ("illava_lab.method.", "illava_lab.schedules.")  # rooms of the lab whose objects are values
_BUILT_IN = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType,
             types.MethodWrapperType, types.ClassMethodDescriptorType, types.GetSetDescriptorType,
             types.MemberDescriptorType)  # fmt: skip
_WEAK = (weakref.ReferenceType, weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
# What Python notes in every class: its text, its place, its types, its subclasses.
_ABOUT_CLASS = frozenset({
    "__dict__", "__weakref__", "__doc__", "__module__", "__qualname__", "__annotations__", "__annotate__",
    "__annotate_func__", "__annotations_cache__", "__firstlineno__", "__static_attributes__", "__abstractmethods__",
    "_abc_impl", "__dataclass_params__", "__match_args__", "__orig_bases__", "__parameters__",
})  # fmt: skip
_ABOUT_MODULE = frozenset({"__name__", "__file__", "__doc__", "__package__", "__spec__", "__loader__", "__builtins__"})


def digest(value: Any) -> str:
    """The fingerprint of a strategy, a class, a function or any value: 32 hexadecimal digits.

    What cannot be seen counts with the name of its type alone: compiled code, open files, generators, what is read or
    named only while the code runs.
    """
    return _Walk(_homes(value)).run(value)


def _homes(value: Any) -> frozenset[str]:
    """Packages that are followed though they may be installed: those of a strategy, its parts, and their bases."""
    kinds = [type(value), *map(type, value.parts if issubclass(type(value), Composed) else ())]
    return frozenset(base.__module__.partition(".")[0] for kind in kinds for base in kind.__mro__)


class _Walk:
    """Describes values one after the other. What can refer back to itself gets a number where it is first met."""

    def __init__(self, homes: frozenset[str]) -> None:
        self._homes = homes
        self._hash = hashlib.sha256()
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # as long as the walk goes on, so that no other value gets the same id
        self._waiting: deque[Any] = deque()
        self._words: set[str] = set()
        self._used: set[tuple[Any, ...]] = set()

    def run(self, value: Any) -> str:
        self._value(value)
        self._all()
        # Strategies that are asked for by name, by code that asks the registry.
        if any(id(way) in self._numbers for way in (registry.get_strategy, registry.make_strategy)):
            known = registry.strategies()
            while wanted := [n for n in sorted(self._words & set(known)) if id(known[n]) not in self._numbers]:
                self._value(known[wanted[0]])
                self._all()
        return self._hash.hexdigest()[:32]

    def _all(self) -> None:
        while self._waiting:
            value = self._waiting.popleft()
            try:
                self._describe(value)
            except Exception as error:  # of a stranger's object, whatever it does when it is looked at
                self._put("not seen", type(error).__name__)

    def _put(self, *words: object) -> None:
        for word in words:
            data = word if isinstance(word, bytes) else str(word).encode(errors="surrogatepass")
            self._hash.update(b"%d:" % len(data) + data)

    # ------------------------------------------------------------------------------------------ values
    def _value(self, value: Any, depth: int = 0) -> None:
        kind = type(value)
        if kind in state.PLAIN:
            self._put(kind.__name__, value if kind is bytes else repr(value))
            if kind is str:
                self._words.add(value)
        elif kind is types.CodeType:
            self._code(value)
        elif depth > DEEPEST:
            self._put("deeper")
        elif kind in (tuple, list):
            self._put(kind.__name__, len(value))
            for one in value:
                self._value(one, depth + 1)
        elif kind in (dict, types.MappingProxyType):
            self._put("dict", len(value))
            for key, one in value.items():
                self._value(key, depth + 1)
                self._value(one, depth + 1)
        elif kind in (set, frozenset):
            self._put(kind.__name__, *sorted(_Walk(self._homes).run(one) for one in value))
        else:
            self._reference(value)

    def _reference(self, value: Any) -> None:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._numbers)
            self._alive.append(value)
            self._waiting.append(value)
        self._put("number", self._numbers[id(value)])

    def _describe(self, value: Any) -> None:
        kind = type(value)
        if kind is types.FunctionType:
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, types.ModuleType):
            self._module(value, None)
        elif kind is types.MethodType:
            self._put("method")
            self._value((value.__func__, value.__self__))
        elif kind in (staticmethod, classmethod):
            self._put(kind.__name__)
            self._value(value.__func__)
        elif kind is property:
            self._put("property")
            self._value((value.fget, value.fset, value.fdel))
        elif kind is functools.cached_property:
            self._put("cached_property")
            self._value(value.func)
        elif kind is state.CACHED:
            self._put("cached")
            self._value(value.__wrapped__)
        elif kind in _BUILT_IN:
            self._named(value)
        elif kind in _WEAK:  # caches
            self._put(kind.__name__)
        elif kind is Field:
            self._put("field")
            self._value((value.name, value.default, value.default_factory, value.init, value.compare))
        elif isinstance(value, torch.nn.Module):
            self._put("network")
            self._value(state.network(value))
        elif isinstance(value, torch.Tensor):
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            self._put("tensor", value.dtype, tuple(value.shape), value.device.type, flat.numpy().tobytes())
        elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._put("array", value.dtype, value.shape, value.tobytes())
        else:
            self._instance(value)

    def _named(self, value: Any) -> None:
        """Something that counts by its name, and by the version of what it came with."""
        module = getattr(value, "__module__", None) or ""
        self._put("named", module, getattr(value, "__qualname__", type(value).__name__), version_of(module))

    # ------------------------------------------------------------------------------------------ code
    def _code(self, code: types.CodeType) -> None:
        found, words = _of_code(code)
        self._put("code", found)
        self._words |= words

    def _function(self, function: types.FunctionType) -> None:
        home = function.__globals__.get("__name__") or ""
        origin = origin_of(home, self._homes)
        if origin is Origin.LIBRARY:
            self._named(function)
            self._value(state.wrapped(function))  # it may decorate one that is none of the library's
            return
        self._put("function")
        self._code(function.__code__)
        self._value((function.__defaults__, function.__kwdefaults__, vars(function), state.around(function)))
        if origin is Origin.PROJECT:
            self._referred(function)

    def _referred(self, function: types.FunctionType) -> None:
        """What a function finds in its module, in built-in names and in the modules that it imports."""
        around, found = function.__globals__, bytecode.names(function.__code__)
        for name in found.globals:
            if name not in around or name in _ABOUT_MODULE:  # built in, not there, or where the module lies
                continue
            self._put("global", name)
            value = around[name]
            if isinstance(value, types.ModuleType):
                self._module(value, None if name in found.whole else found.attributes)
            else:
                self._value(value)
        for level, name in found.imports:
            full = bytecode.absolute(level, name, around.get("__package__"))
            self._put("import", name)
            if full and origin_of(full, self._homes) is not Origin.LIBRARY:
                self._module(_imported(full), found.attributes)
            else:
                self._put(version_of(full or ""))

    def _module(self, module: types.ModuleType | None, attributes: Iterable[str] | None) -> None:
        """A module, as far as these attributes of it are asked for; None for all that it holds."""
        name = getattr(module, "__name__", "")
        use = (id(module), None if attributes is None else tuple(sorted(attributes)))
        if use in self._used:  # modules may hold each other
            self._put("module", name)
            return
        self._used.add(use)
        if module is None or origin_of(name, self._homes) is Origin.LIBRARY:
            self._put("module", name, version_of(name))
            return
        held = vars(module)
        asked = [key for key in held if not key.startswith("__")] if attributes is None else attributes
        for key in sorted(asked):
            if key in held or "__getattr__" in held:  # which loads what is asked for
                value = getattr(module, key, None)
                self._put("of a module", key)
                if isinstance(value, types.ModuleType):
                    self._module(value, attributes or ())
                else:
                    self._value(value)

    def _class(self, cls: type) -> None:
        # A class that `exec` made without a module says that it is built in.
        module = "" if cls.__module__ == "builtins" and cls.__flags__ & _MADE_IN_PYTHON else cls.__module__
        if origin_of(module, self._homes) is Origin.LIBRARY:
            self._named(cls)
            return
        self._put("class")
        self._value((cls.__bases__, type(cls)))
        for name, value in sorted(vars(cls).items()):
            if name not in _ABOUT_CLASS:
                self._put(name)
                self._value(value)

    # ------------------------------------------------------------------------------------------ objects
    def _instance(self, value: Any) -> None:
        """Its class, and what it would be pickled as."""
        cls = type(value)
        self._put("instance")
        self._value(cls)
        if origin_of(cls.__module__, self._homes) is Origin.LAB and not cls.__module__.startswith(_PLAIN):
            return
        if callable(value) and origin_of(cls.__module__, self._homes) is Origin.LIBRARY and state.functions_in(value):
            self._value(state.functions_in(value))  # which a library compiled, and keeps with what that took
            return
        self._value(state.state_of(value))


@functools.lru_cache(maxsize=10_000)
def _of_code(code: types.CodeType) -> tuple[str, frozenset[str]]:
    """The fingerprint of a code object, which refers to nothing, and the words in it."""
    walk = _Walk(frozenset())
    for part in bytecode.described(code):
        walk._value(part)
    return walk._hash.hexdigest(), frozenset(walk._words)


def _imported(name: str) -> types.ModuleType | None:
    """The module, which the code would import a moment later; None if it cannot be."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None
