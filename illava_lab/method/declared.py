"""What a class of strategies says of itself, also where its settings decide."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

from illava_lab.errors import LabError, reason
from illava_lab.method.strategy import Strategy


def needs_settings(cls: type[Strategy]) -> bool:
    """Whether a class has a setting without a default."""
    missing = dataclasses.MISSING
    return any(f.init and f.default is missing and f.default_factory is missing for f in dataclasses.fields(cls))


def declared(cls: type[Strategy], attribute: str, unknown: Any = None) -> Any:
    """What a class says of itself, such as its `kind`; a property is read with the default settings.

    Returns:
        The value, or `unknown` for a property of a class that has a setting without a default: only an instance knows.

    Raises:
        LabError: the property fails, or the class refuses its own default settings.
    """
    value = getattr(cls, attribute)
    if not isinstance(value, (property, cached_property)):
        return value
    if needs_settings(cls):
        return unknown
    try:
        return getattr(cls(), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a stranger's class may fail in any way, even sys.exit
        raise LabError(
            f"{cls.__name__}.{attribute} cannot be read with the default settings: {reason(error)}"
        ) from error
