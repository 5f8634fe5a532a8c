"""The embedded models by name: what is there opens like any checkpoint, what is not is one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.labs import noise
from helpers.onevision import onevision_lab, save_onevision

import illava_lab as il
from illava_lab import paths
from illava_lab.__main__ import main

NAME = "embedded:onevision"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the one with the embedded models."""
    monkeypatch.setattr(paths, "data_dir", lambda: tmp_path)
    return tmp_path


def test_it_opens_by_its_name_and_answers_about_crops_pictures_and_frames(data: Path) -> None:
    save_onevision(data / "onevision")
    lab = il.load(NAME)
    assert lab.source == NAME and repr(lab).startswith(f"Lab('{NAME}'")
    film = il.read_video(np.stack([np.asarray(noise(64, 64, seed)) for seed in range(8)]))
    shown = {"crops": noise(128, 128), "pictures": [noise(64, 64), noise(64, 64, 1)], "film": film}
    tokens = {
        # The whole picture, four crops with a newline behind each row of patches; pictures with one behind; 4 x 4.
        "crops": (lab.model.config.image_token_id, 64 + 16 * 17),
        "pictures": (lab.model.config.image_token_id, 2 * 65),
        "film": (lab.model.config.video_token_id, 8 * 16 + 1),
    }
    for name, entry in shown.items():
        inputs = lab.inputs([entry], ["token30"])
        assert int((inputs["input_ids"] == tokens[name][0]).sum()) == tokens[name][1], name
        asked = lab.ask(entry, "token30", "illava", keep=0.5, max_new_tokens=4)
        assert asked.text == onevision_lab().ask(entry, "token30", "illava", keep=0.5, max_new_tokens=4).text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (NAME, f"this release of illava-lab comes without '{NAME}', .*onevision'; leave the name out"),
        ("embedded:one", "there is no embedded model 'embedded:one'; there is the one without a name$"),
        ("embedded:", "there is no embedded model 'embedded:'; there is"),
        ("embedded:../model", "there is no embedded model 'embedded:../model'; there is"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    data: Path, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    with pytest.raises(il.LabError, match=f"^{says}"):
        il.load(name)
    assert main(["compare", "--model", name, "--limit", "4"]) == 2
    assert re.match(f"illava-lab: error: {says.removesuffix('$')}.*\n$", capsys.readouterr().err)
    (data / "onevision").mkdir()
    if name != NAME:
        with pytest.raises(il.LabError, match=f"; there is the one without a name and '{NAME}'$"):
            il.load(name)


@pytest.mark.parametrize("name", ["fine-validation", "multi-image-validation", "video-validation"])
def test_the_second_model_answers_what_no_single_small_picture_shows(name: str) -> None:
    table = il.controls(il.load(NAME), il.load_task(name).limited(24), batch_size=8).set_index("category")
    assert table.at["all", "accuracy"] >= 0.85 > 0.6 >= table.at["all", "other_images"]
