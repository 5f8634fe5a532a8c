"""One file for each method, and nothing else in it: a file that is dropped here is found by itself.

Installed, this folder is `illava_lab.strategies`. Called as a function, ``illava_lab.strategies()``, it returns every
strategy that is installed, from here and from elsewhere, by name.
"""

import sys
from types import ModuleType

from illava_lab.method import registry


class _Room(ModuleType):
    """Python makes a sub-package an attribute of its package, where people look for the function of that name."""

    def __call__(self) -> dict[str, type]:
        return registry.strategies()


sys.modules[__name__].__class__ = _Room
