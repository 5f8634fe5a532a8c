"""Ctrl-C while the program starts: one line and status 130, not the traceback of whatever is being imported."""

from __future__ import annotations

import os
import sys

PROGRAM = "illava-lab"
SCRIPTS = (PROGRAM, f"{PROGRAM}.exe", f"{PROGRAM}-script.py")


def is_program() -> bool:
    """Whether this process is the command line, and not somebody who imports the lab."""
    started: str = (getattr(sys, "argv", None) or [""])[0]
    as_module = started == "-m" and "illava_lab" in sys.orig_argv  # Python puts the file there later
    return as_module or os.path.basename(started) in SCRIPTS


def stop(*_: object) -> None:
    """A handler that ends the process. Not by an exception, which in the middle of loading torch ends in a crash."""
    os.write(2, f"\n{PROGRAM}: interrupted\n".encode())
    os._exit(130)


def stop_on_ctrl_c() -> None:
    """From now on `stop` is what Ctrl-C does in the program; in others, and where somebody wants it otherwise, nothing
    changes."""
    if is_program():
        import signal

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, stop)
