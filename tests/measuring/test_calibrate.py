"""Strategies whose pictures decide how many tokens stay: what they keep is measured, and a budget holds in the mean."""

from __future__ import annotations

import pytest

import illava_lab as il
from illava_lab.measuring.task_files import load_task


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


def test_a_budget_holds_in_the_mean_once_it_is_calibrated(lab: il.Lab) -> None:
    task = load_task("validation").limited(16)
    pictures = [task.image(image) for image in task.samples["image_id"].unique()]
    own = il.get_strategy("prumerge")(decides="image")
    calibrated = il.calibrate(lab, own, pictures)
    assert 0 < calibrated.typical < 1 and calibrated.own_count
    table = il.compare(lab, [own, calibrated], keep=[0.2, 0.3], task=task, timing=False, progress=False)
    kept = dict(zip(zip(table["strategy"], table["keep"], strict=True), table["kept"], strict=True))
    assert kept["none", 1.0] == 1.0
    assert kept[own.label, 0.2] == kept[own.label, 0.3] == pytest.approx(calibrated.typical, abs=0.01)
    assert kept[calibrated.label, 0.2] == pytest.approx(0.2, abs=0.02)
    assert kept[calibrated.label, 0.3] == pytest.approx(0.3, abs=0.02)
    text = il.summary(table)
    assert f"{own.label} at keep 0.3: pictures kept {calibrated.typical:.2f} of their tokens on the mean" in text
    assert f"{calibrated.label} at" not in text


@pytest.mark.parametrize("strategy", ["illava", "prumerge", il.get_strategy("flowcut")(decides="image")])
def test_what_cannot_be_calibrated_is_refused(lab: il.Lab, strategy: str) -> None:
    with pytest.raises(il.LabError, match="has nothing to calibrate: it needs own_count and a setting 'typical'"):
        il.calibrate(lab, strategy, [il.data_dir() / "samples" / "shapes.png"])
    with pytest.raises(il.LabError, match="images must be a list of at least one picture"):
        il.calibrate(lab, il.get_strategy("prumerge")(decides="image"), [])
