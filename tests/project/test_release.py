"""What `make release` does before anything is built; building and installing is the command's own work."""

from __future__ import annotations

import re
import sys
import tarfile
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


def test_what_is_not_committed_is_not_in_it(tmp_path: Path) -> None:
    if not (CLONE / ".git").exists():
        pytest.skip("no repository")
    stray = CLONE / "stray-file-of-a-test.txt"
    stray.write_text("not committed")
    try:
        source = release.lay_out(tmp_path / "source")
    finally:
        stray.unlink()
    assert (source / "pyproject.toml").exists() and not (source / stray.name).exists()
    with tarfile.open(tmp_path / "source.tar") as tar:
        assert (source / "README.md").read_bytes() != tar.extractfile("README.md").read()  # type: ignore[union-attr]
