"""No code of a checkpoint is run or offered to be run, whatever class names it, in whatever file, in every family."""

from __future__ import annotations

import io
import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.odd_folders import CLASSES, MARKER, code, pickled
from helpers.small_labs import FAMILIES, small_lab
from PIL import Image

import illava_lab as il
from illava_lab.models.processors import load_processor
from illava_lab.paths import data_dir

FILES = (
    "config.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json", "tokenizer_config.json",
    "tokenizer.json", "special_tokens_map.json", "generation_config.json", "added_tokens.json", "chat_template.json", "other.json",
)  # fmt: skip
# The shared models keep some tokens on the tokenizer alone; a published checkpoint has them in its file.
INTERN = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
}  # fmt: skip


class Asked(io.StringIO):
    """Somebody who says yes to everything, and notes that they were asked."""

    asked = False

    def readline(self, *_) -> str:
        self.asked = True
        return "y\n"


@pytest.fixture
def person(monkeypatch: pytest.MonkeyPatch) -> Asked:
    monkeypatch.setattr(sys, "stdin", Asked())
    monkeypatch.setattr("builtins.input", lambda *_: sys.stdin.readline())
    return sys.stdin


def saved(family: str, folder: Path) -> Path:
    """A checkpoint of a family, with code of its own beside it that nothing names yet."""
    if family == "embedded":
        shutil.copytree(data_dir() / "model", folder)
    else:
        lab = small_lab(family)
        lab.model.save_pretrained(folder)
        lab.processor.save_pretrained(folder)
        if family == "internvl":
            told = json.loads((folder / "tokenizer_config.json").read_text())
            (folder / "tokenizer_config.json").write_text(json.dumps(told | {"extra_special_tokens": INTERN}))
    (folder / "mine.py").write_text(code(folder))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code(folder) + "def generate(model, **_): ...\n")
    return folder


QUICK = ("embedded", "internvl", "qwen2.5-vl")


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES]
)
def test_no_file_can_have_code_run_for_any_class(family, tmp_path, person):
    """At the top of a file and within; in the slow families every other file at either place."""
    folder = saved(family, tmp_path / "foreign")
    config = il.load(folder).model.config
    auto_map = {name: ["mine.Mine", "mine.Mine"] if name == "AutoTokenizer" else "mine.Mine" for name in CLASSES}
    for number, name in enumerate(FILES):
        before = (folder / name).read_text() if (folder / name).exists() else None
        content = json.loads(before or "{}")
        inner = next((value for value in content.values() if isinstance(value, dict)), content)
        for where in (content, inner) if family in QUICK else ((content, inner)[number % 2],):
            where["auto_map"] = auto_map
            (folder / name).write_text(json.dumps(content))
            with pytest.raises(il.LabError, match="brings code of its own, which the lab never runs") as caught:
                il.load(folder)
            assert repr(name) in str(caught.value)
            with suppress(Exception):  # that which reads the files runs nothing either, whoever calls it
                load_processor(folder, config)
            del where["auto_map"]
        if before is None:
            (folder / name).unlink()
        else:
            (folder / name).write_text(before)
    il.load(folder)
    assert not person.asked and not (folder / MARKER).exists()


def test_nothing_else_that_names_code_is_followed(tmp_path, person):
    folder = saved("embedded", tmp_path / "foreign")
    for name, values, says in [
        ("generation_config.json", {"custom_generate": "custom_generate"}, "brings code of its own"),
        ("config.json", {"trust_remote_code": True}, "brings code of its own"),
        ("config.json", {"use_kernels": True}, "which the lab does not follow"),
        ("config.json", {"_attn_implementation": f"{folder}:mine"}, "which the lab never fetches"),
        ("config.json", {"attn_implementation": {"text_config": "org/kernel"}}, "which the lab never fetches"),
        ("config.json", {"model_type": "mine"}, "cannot be loaded"),
        ("processor_config.json", {"processor_class": "mine.Mine", "image_processor": {"image_processor_type": "mine.Mine"}}, "cannot be loaded"),
    ]:  # fmt: skip
        before = (folder / name).read_text()
        (folder / name).write_text(json.dumps(json.loads(before) | values))
        with pytest.raises(il.LabError, match=says):
            il.load(folder)
        (folder / name).write_text(before)
    for name in ("adapter_config.json", "adapter_model.bin"):
        (folder / name).write_bytes(
            pickled(folder) if name.endswith("bin") else b'{"base_model_name_or_path": "org/other"}'
        )
        with pytest.raises(il.LabError, match="is an adapter of another model"):
            il.load(folder)
        (folder / name).unlink()
    (folder / "tokenizer.model").write_bytes(pickled(folder))
    (folder / "pytorch_model.bin").write_bytes(pickled(folder))
    lab = il.load(folder)
    assert lab.answer([Image.new("RGB", (40, 30), "red")], ["What color is the circle?"], 2)
    assert not person.asked and not (folder / MARKER).exists()
