"""Make the lab's own rows of the leaderboard from the tables beside this file: `make leaderboard`.

Every folder with a table.csv of `compare` and a measured.json gives its finished rows. Rows of others stay as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from illava_lab.measuring.leaderboard import file_name, row_of, write

RESULTS = Path(__file__).parent
ROWS = RESULTS / "leaderboard" / "rows"
BY = "illava-lab"


def rows() -> dict[str, dict[str, Any]]:
    """The lab's rows by the names of their files; where two tables have one, that with times counts."""
    out: dict[str, dict[str, Any]] = {}
    for folder in sorted(path.parent for path in RESULTS.rglob("measured.json")):
        noted = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
        table = pd.read_csv(folder / "table.csv")
        fine = table[table["status"] == "ok"].to_dict("records")
        bare = next(row for row in fine if row["strategy"] == "none")
        for values in fine:
            row = row_of(values, bare, noted["settings"], noted["measured"], BY)
            if row["prefill_time"] is not None or file_name(row) not in out:
                out[file_name(row)] = row
    return out


def main() -> None:
    made = rows()
    for path in ROWS.glob("*.json"):
        if json.loads(path.read_text(encoding="utf-8"))["by"] == BY:
            path.unlink()
    for row in made.values():
        write(row, ROWS)
    print(f"{len(made)} rows in {ROWS}")


if __name__ == "__main__":
    main()
