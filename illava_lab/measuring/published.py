"""What papers and READMEs report about methods of token reduction, to show beside what was measured here."""

from __future__ import annotations

import pandas as pd

from illava_lab import paths
from illava_lab.errors import LabError

NUMBERS = ("value", "baseline")


def published(method: str | None = None, metric: str | None = None, model: str | None = None) -> pd.DataFrame:
    """Published figures, one row each, as their sources state them; none was measured with this lab.

    Args:
        method: a method's name, the registered one where the lab has the method; "none" is the unreduced model.
        metric: what the figure says, such as "score", "speed-up" or "FLOPs ratio".
        model: the model's name as in the table.

    Returns:
        The rows that fit every argument given. Columns: method, model, setting, task, metric, value, qualifier
        ("about", "up to", ...), unit ("x" is a factor), baseline (the same figure of the unreduced model, NaN if not
        given), hardware, source (a title), url_or_arxiv, evidence (where the figure was read; "computed by us" is
        arithmetic).
        Rows of different sources, settings or hardware are not comparable with each other.

    Raises:
        LabError: no figure has that method, metric or model.
    """
    table = pd.read_csv(paths.data_dir() / "published.csv", dtype=str, keep_default_na=False)
    for column in NUMBERS:
        table[column] = pd.to_numeric(table[column])
    whole = table
    for column, wanted in {"method": method, "metric": metric, "model": model}.items():
        if wanted is None:
            continue
        known = sorted(whole[column].unique())
        if wanted not in known:
            raise LabError(f"published figures have no {column} {wanted!r}; there are: {', '.join(known)}")
        table = table[table[column] == wanted]
    return table.reset_index(drop=True)
