"""What has become of all patches of an image, for several methods, in one table."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from illava_lab.trace.trace import Trace


def fates(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """A row for each method: its steps, and who stands for the patches in the end.

    Args:
        traces: name -> trace of one prompt with one image.
    """
    rows = {}
    for name, trace in traces.items():
        weights = trace.sources(0).weights
        members = (weights != 0).sum(1)
        rows[name] = {
            "steps": ", ".join(f"{step.stage[0].upper()}{step.layer}" for step in trace.steps),
            "tokens of one patch": int((members == 1).sum()),
            "patches in the largest token": int(members.max()),
            "patches gone": int((weights == 0).all(0).sum()),
            "smallest weight of a patch": f"{float(weights[weights > 0].min()):.0e}",
        }
    return pd.DataFrame(rows).T
