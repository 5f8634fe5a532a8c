"""Files in folders that others can write to: they are made anew, and no link is followed.

Whoever shares a machine may have put a link, a pipe or a folder where the lab is about to write its table. Opened the
usual way, that writes over somebody's file, or waits for ever.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import time
from pathlib import Path

LARGEST = 1 << 30
"""Bytes of a file that `read_plain` reads; of runs, none comes near it."""

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # a pipe would wait for its other end
_PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
_LEFT_OVER = 3600.0  # seconds after which a part belongs to a run that was killed


def write_whole(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write a file completely or not at all: beside its place under a new name, then moved there.

    Whatever was in its place, a link or a pipe too, is replaced; what a link leads to stays as it is.

    Raises:
        OSError: the folder cannot be written, the disk is full, or a folder is in the file's place. The file is then
            as it was.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)
    try:
        try:
            _write(descriptor, data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def append(path: str | os.PathLike[str], data: str) -> None:
    """Add to the end of a plain file that is there, safe on the disk before this returns.

    Raises:
        OSError: no file is there, or a link; or the disk is full. Nothing is added then.
    """
    descriptor, size = _open_plain(path, os.O_WRONLY | os.O_APPEND)
    try:
        try:
            _write(descriptor, data.encode())
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def read_plain(path: str | os.PathLike[str]) -> bytes:
    """What a plain file holds.

    Raises:
        OSError: no such file; or a link, a pipe or a device is in its place; or it is larger than `LARGEST`.
    """
    descriptor, size = _open_plain(path, os.O_RDONLY)
    try:
        if size > LARGEST:
            raise OSError(f"{Path(path).name} is larger than {LARGEST >> 30} GB")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(LARGEST)
    finally:
        os.close(descriptor)


def clear_parts(folder: Path) -> None:
    """Remove what killed runs left of `write_whole`."""
    for part in folder.glob(".*.part"):
        if _PART.fullmatch(part.name) and time.time() - part.lstat().st_mtime > _LEFT_OVER:
            part.unlink(missing_ok=True)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a disk that is filling up takes a part
        rest = rest[os.write(descriptor, rest) :]


def _open_plain(path: str | os.PathLike[str], how: int) -> tuple[int, int]:
    """A descriptor of a plain file, and its bytes."""
    if os.path.islink(path):  # said in words; O_NOFOLLOW holds where one is put there right now
        raise OSError(f"{Path(path).name} is a link")
    descriptor = os.open(path, how | _NO_WAITING | _NO_LINK)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError(f"{Path(path).name} is no plain file")
    return descriptor, found.st_size
