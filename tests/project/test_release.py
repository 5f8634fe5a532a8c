"""What `make release` does before anything is built; building and installing is the command's own work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CLONE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CLONE))  # the script there is no package

import release  # noqa: E402


def test_links_of_the_readme_lead_somewhere_without_the_repository() -> None:
    text = (CLONE / "README.md").read_text(encoding="utf-8")
    made = release.absolute(text)
    relative = re.findall(r"\]\((?!https?://|#)([^)]+)\)", made)
    assert not relative and release.absolute(made) == made
    ours = re.findall(rf"\]\({re.escape(release.REPOSITORY)}/(blob|raw)/main/([^)#]+)", made)
    assert len(ours) > 10 and {kind for kind, _ in ours} == {"blob", "raw"}
    for _, name in ours:
        assert (CLONE / name).exists(), name
    assert re.sub(r"\([^()]*\)", "", made) == re.sub(r"\([^()]*\)", "", text), "nothing but addresses is another"


def test_the_last_commit_is_laid_out_and_nothing_else(tmp_path: Path) -> None:
    if not (CLONE / ".git").exists():
        pytest.skip("no repository")
    source = release.lay_out(tmp_path / "source")
    found = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    listed = subprocess.run(["git", "ls-tree", "-r", "--name-only", "HEAD"], cwd=CLONE, capture_output=True, text=True)
    assert found == set(listed.stdout.splitlines()) and len(found) > 100
    assert release.REPOSITORY in (source / "README.md").read_text(encoding="utf-8")
