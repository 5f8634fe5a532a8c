"""The lab's own code, as it was loaded: in a checkout it changes without a new version."""

from __future__ import annotations

import secrets
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import illava_lab
from illava_lab.measuring.digest import digest

# What computes a row; what only shows it is left out.
ROOMS = ("hooks", "measuring", "method", "models", "schedules", "session", "sites", "trace")
BASELINE = "illava_lab.strategies.none"


def _read() -> tuple[dict[str, bytes], bool]:
    """The files, and whether one was edited after the lab was loaded and before this line."""
    package = Path(illava_lab.__file__).parent
    paths = {path.relative_to(package).as_posix(): path for room in ROOMS for path in (package / room).rglob("*.py")}
    baseline = find_spec(BASELINE)
    if baseline is not None and Path(baseline.origin or "").is_file():  # else the lab is in an archive, as a whole
        paths[BASELINE] = Path(str(baseline.origin))
    texts, edited = {}, False
    for name, path in sorted(paths.items()):
        found = path.stat()
        texts[name] = path.read_bytes()
        edited |= max(found.st_mtime, found.st_ctime) > illava_lab._loaded_at
    return texts, edited


# Now, when the modules have just been imported, and not when somebody asks, after hours in which they were edited.
_TEXTS, _EDITED = _read()


@cache
def own_code() -> str:
    """A fingerprint of the lab's version and of its code, without comments and docstrings.

    Where it cannot be told whether the files are what was loaded, it is one that no other process will have.
    """
    if _EDITED:
        return secrets.token_hex(16)
    codes = {name: compile(text, name, "exec", dont_inherit=True, optimize=2) for name, text in _TEXTS.items()}
    return digest((illava_lab.__version__, codes))
