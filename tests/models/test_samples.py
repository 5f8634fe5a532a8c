"""The sample pictures are drawn by their script, in no question file, and answered right by the embedded model."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import illava_lab as il

SAMPLES = il.data_dir() / "samples"
QUESTIONS = pd.read_csv(SAMPLES / "questions.csv", dtype=str)
sys.path.insert(0, str(Path(__file__).parents[2] / "data"))  # the scripts there are no package

import make_samples  # noqa: E402


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.mark.parametrize("picture", sorted(set(QUESTIONS.picture)))
@pytest.mark.parametrize(("strategy", "keep"), [("none", 1.0), ("illava", 0.5)])
def test_every_sample_question_is_answered_right(lab: il.Lab, picture: str, strategy: str, keep: float) -> None:
    own = QUESTIONS[QUESTIONS.picture == picture]
    said = [lab.ask(SAMPLES / picture, question, strategy, keep=keep).text for question in own.question]
    assert 3 <= len(own) <= 5 and said == list(own.answer)


def test_the_samples_are_what_the_script_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["make_samples.py", "--out", str(tmp_path)])
    make_samples.main()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in SAMPLES.iterdir()}
    assert (tmp_path / "questions.csv").read_bytes() == (SAMPLES / "questions.csv").read_bytes()
    for picture in SAMPLES.glob("*.png"):
        old, new = (np.asarray(Image.open(path)).astype(int) for path in (picture, tmp_path / picture.name))
        assert np.abs(old - new).mean() < 1, "other releases of Pillow may round differently, not draw differently"
        assert picture.stat().st_size < 60_000


@pytest.mark.parametrize("split", ["test", "validation"])
def test_no_sample_is_a_picture_of_a_question_file(split: str) -> None:
    ours = [np.asarray(Image.open(path)).astype(int) for path in SAMPLES.glob("*.png")]
    for data in pd.read_parquet(il.data_dir() / f"{split}.parquet").image.drop_duplicates():
        row = np.asarray(Image.open(BytesIO(data))).astype(int)
        assert min(np.abs(row - own).mean() for own in ours) > 5
