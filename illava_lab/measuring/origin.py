"""Where code comes from: somebody's project, the lab, or a library."""

from __future__ import annotations

import enum
import sys
import sysconfig
from collections.abc import Collection
from functools import cache
from importlib import metadata
from pathlib import PurePath

LAB = "illava_lab"
STRATEGIES = "illava_lab.strategies"
# Whose code is never followed, wherever it lies: a torch that was built in a folder of its own is as large as any.
LIBRARIES = frozenset({
    "accelerate", "IPython", "matplotlib", "numpy", "pandas", "PIL", "scipy", "sklearn", "torch", "torchvision",
    "transformers", "triton",
})  # fmt: skip

_STANDARD = PurePath(sysconfig.get_path("stdlib"))


class Origin(enum.Enum):
    """PROJECT: notebooks, scripts, packages that are worked on, and the strategies. LIBRARY: everything installed."""

    PROJECT = enum.auto()
    LAB = enum.auto()
    LIBRARY = enum.auto()


def origin_of(module: str, homes: Collection[str] = ()) -> Origin:
    """Where a module comes from, by its name.

    Args:
        homes: packages that count as projects though they are installed.
    """
    top = module.partition(".")[0]
    if top == LAB:
        return Origin.PROJECT if module == STRATEGIES or module.startswith(f"{STRATEGIES}.") else Origin.LAB
    if top in LIBRARIES:
        return Origin.LIBRARY
    loaded = sys.modules.get(module) or sys.modules.get(top)
    file = getattr(loaded, "__file__", None) or ""
    if top in sys.stdlib_module_names and (not file or PurePath(file).is_relative_to(_STANDARD)):
        return Origin.LIBRARY
    if top in homes:
        return Origin.PROJECT
    installed = {"site-packages", "dist-packages"} & set(PurePath(file).parts)
    return Origin.LIBRARY if installed else Origin.PROJECT


@cache
def version_of(module: str) -> str:
    """The version of the distribution that a module came with; empty for the standard library and for projects."""
    top = module.partition(".")[0]
    if not top or top in sys.stdlib_module_names:
        return ""
    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        found = metadata.packages_distributions().get(top, [])
        return " ".join(metadata.version(one) for one in sorted(set(found)))
