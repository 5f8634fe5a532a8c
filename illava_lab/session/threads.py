"""How threads of numerical libraries wait for their next piece of work."""

from __future__ import annotations

import os
import sys


def wait_passively() -> None:
    """Let them sleep while they wait, unless the user has set ``OMP_WAIT_POLICY``.

    By default they turn in circles, which takes the cores away from whoever has work to do: on a busy laptop answers
    come ten times later. The setting is read when torch is loaded, so it comes before that or not at all.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
