"""What objects hold, as far as it can be looked at from outside."""

from __future__ import annotations

import copyreg
import functools
import types
from typing import Any

import torch

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
CACHED = type(functools.lru_cache(len))
_CODE = (types.FunctionType, types.MethodType, type, functools.partial, CACHED, *PLAIN)
_FIRST = 4096


def state_of(value: Any) -> Any:
    """Values that an object is made of: what it would be pickled as. Only its functions, if it cannot be pickled.

    A cached property is left out: it says what was asked before, and follows from the rest.
    """
    cls = type(value)
    try:
        reduced = copyreg.dispatch_table[cls](value) if cls in copyreg.dispatch_table else value.__reduce_ex__(4)
    except Exception:  # a lock, a generator, an open file
        return functions_in(value)
    if isinstance(reduced, str):
        return reduced
    make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
    if isinstance(state, dict):
        cached = {name for base in cls.__mro__ for name, held in vars(base).items()
                  if isinstance(held, functools.cached_property)}  # fmt: skip
        state = {name: held for name, held in state.items() if name not in cached}
    return make, arguments, state, *(None if one is None else list(one) for one in (items, pairs))


def functions_in(value: Any) -> list[types.FunctionType]:
    """Functions that an object holds."""
    return [held for held in getattr(value, "__dict__", {}).values() if type(held) is types.FunctionType]


def around(function: types.FunctionType) -> list[Any]:
    """What a function has in its closure."""
    return [_content(cell) for cell in function.__closure__ or ()]


def wrapped(function: types.FunctionType) -> list[Any]:
    """The functions and the plain values that a decorator is around."""
    held = [one for cell in around(function) for one in (cell.values() if type(cell) is dict else [cell])]
    return [one for one in (getattr(function, "__wrapped__", None), *held) if isinstance(one, _CODE)]


def network(value: torch.nn.Module) -> list[Any]:
    """A model by its parts, and by the first values of its weights: reading gigabytes would take too long."""
    out: list[Any] = []
    for name, part in value.named_modules():
        plain = {key: held for key, held in vars(part).items() if isinstance(held, PLAIN) and key != "training"}
        out.append((name, type(part), plain))
    for name, weight in value.state_dict().items():
        if isinstance(weight, torch.Tensor):
            first = weight.flatten()[:_FIRST].float().cpu().numpy().tobytes()
            out.append((name, tuple(weight.shape), first))
    return out


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing is in it yet
        return None
