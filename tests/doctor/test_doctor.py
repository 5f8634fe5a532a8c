"""illava-lab doctor: it says of everything whether it works, ends with 0 or 1, and never with a traceback."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.every import of_pictures
from safetensors.torch import load_file, save_file

import illava_lab as il
from illava_lab.__main__ import main
from illava_lab.doctor import examination
from illava_lab.doctor.report import WIDTH, Report
from illava_lab.paths import data_dir

LINE = re.compile(r"^  (ok|FAILED|-) +(\S+(?: \w+)*) {2,}(.*)$")


def doctor(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, dict[str, tuple[str, str]]]:
    """Status, and what was found -> (mark, text)."""
    code = main(["doctor", *map(str, words)])
    out, err = capsys.readouterr()
    assert err == "" and max(map(len, out.splitlines())) <= WIDTH
    found: dict[str, tuple[str, str]] = {}
    for line in out.splitlines():
        if head := LINE.match(line):
            found[head[2]] = (head[1], head[3])
        elif line.startswith(" "):
            name = list(found)[-1]
            found[name] = (found[name][0], f"{found[name][1]} {line.strip()}")
    failed = [name for name, (mark, _) in found.items() if mark == "FAILED"]
    last = f"{len(failed)} of these failed: {', '.join(failed)}." if failed else "Nothing failed."
    assert out.splitlines()[-1] == last and code == bool(failed)
    return code, found


def test_the_embedded_model_is_well_and_a_broken_strategy_is_only_noted(capsys: pytest.CaptureFixture[str]) -> None:
    @il.register
    class Quits(il.Scorer):
        name = "quits"

        def score(self, tokens):
            sys.exit(3)

    @il.register
    class Astray(il.Scorer):
        name = "astray"

        def layers(self, stage, depth):
            raise il.LabError("it cannot be")

    @il.register
    class AlsoAstray(Astray):
        name = "also-astray"

    code, found = doctor(capsys)
    assert code == 0, found
    assert found["transformers"][0] == "ok" and "GB free" in found["memory"][1]
    for what in ("identity", "all kept", "afterwards"):
        assert found[what][1].endswith("the logits of the bare model to the bit")
    assert ": 'red'; encoder layer" in found["reduced"][1] and "-> 98" in found["reduced"][1]
    assert "takes no videos; those that do" in found["videos"][1]
    if not torch.cuda.is_available():
        assert found["quantize"][1].startswith("quantize='4bit' needs an NVIDIA GPU")
    assert found["quits"] == ("-", "strategy 'quits' at encoder layer 2 fails with SystemExit: 3")
    assert found["2 strategies"] == ("-", "also-astray, astray: it cannot be")
    every = len(of_pictures()) - 1
    assert found["strategies"][1].startswith(f"{every - 3} of {every} for pictures reach keep 0.5")


def test_what_cannot_be_loaded_is_one_line_behind_the_versions(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for given, says in {
        tmp_path: "it is no checkpoint: the folder has no config.json",
        "nowhere": "it is neither a folder nor a hub id",
        "": "it is neither a folder nor a hub id",
        "random:nothing": "no configuration for 'random:nothing'",
    }.items():
        code, found = doctor(capsys, given)
        assert code == 1 and says in found["loads"][1], given
        assert found["torch"][0] == "ok" and "identity" not in found


def test_weights_without_numbers_and_logits_of_another_model_are_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(data_dir() / "model", tmp_path / "bad")
    weights = load_file(folder / "model.safetensors")
    save_file({name: w * torch.nan for name, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    code, found = doctor(capsys, folder)
    assert code == 1 and found["loads"][0] == "ok" and "no finite numbers" in found["prefill"][1]
    lab = il.load()
    bare = examination._prefill(Report(), lab)
    shifted = examination.Bare(bare.inputs, bare.logits + torch.randn(bare.logits.shape) * 0.01, bare.seconds)
    for check in (examination._identity, examination._all_kept):
        with pytest.raises(il.LabError, match="more than rounding"):
            check(lab, shifted)


def test_an_installation_that_is_broken_is_described(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    (tmp_path / "transformers-9.9.dist-info").mkdir()
    (tmp_path / "transformers-9.9.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 9.9\n")
    path = os.pathsep.join([str(tmp_path), str(Path(il.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-m", "illava_lab", "doctor"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    assert re.search(r"FAILED  transformers   9\.9; the lab needs transformers<5\.\d+,>=5\.6", done.stdout)
    for what in ("cpu", "cuda", "loads"):
        assert re.search(rf"FAILED  {what} +OSError: libcudart\.so\.13: cannot open", done.stdout), done.stdout
    assert "GB free" in done.stdout
