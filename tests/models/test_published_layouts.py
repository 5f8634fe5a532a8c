"""Checkpoints laid out as published ones, loaded by their names from a hub, asked, talked with, shown several and films."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.hub_server import point_at, serving
from helpers.layouts import PUBLISHED
from helpers.published import publish
from PIL import Image
from safetensors.torch import load_file

import illava_lab as il
from illava_lab.__main__ import main
from illava_lab.doctor import unsupported
from illava_lab.models.families import describe
from illava_lab.models.frames import FRAMES

pytestmark = [
    pytest.mark.network,
    pytest.mark.filterwarnings(
        "ignore:The following device_map keys do not match:UserWarning"
    ),  # a parameter is no module
]

RICHEST = "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"  # crops, films, tied weights
QUESTION = "What is on the table?"


def layers_on_disk(model) -> dict[str, str]:
    """Layers there go through the same hooks of accelerate as layers on another GPU."""
    owners = [name.rpartition(".")[0] for name, _ in model.named_parameters(remove_duplicate=False)]
    parts = {*owners} - {"model"} | {f"model.{name}" for name, _ in model.model.named_parameters(recurse=False)}
    return {part: "disk" if "_model.layers." in part else "cpu" for part in sorted(parts)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == RICHEST else pytest.mark.slow) for name in PUBLISHED]
)
def test_a_published_layout_works_from_its_name_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = publish(name, tmp_path / "published")
    shards = sorted(folder.glob("*.safetensors"))
    with serving(name, folder) as address:
        point_at(address, tmp_path / "cache", monkeypatch)
        lab = il.load(name)
        # Weights of experts are put together while they are read, and transformers puts no such weights on a disk.
        experts = "num_experts" in PUBLISHED[name].config.get("text_config", {})
        spread = lab if experts else il.load(name, device_map=layers_on_disk(lab.model))
    assert len(shards) > 1 and lab.source == name

    saved = [weight.float() for shard in shards for weight in load_file(shard).values()]
    loaded = {id(weight): weight for weight in lab.model.parameters()}.values()
    assert sorted(float(weight.abs().sum()) for weight in saved) == pytest.approx(
        sorted(float(weight.detach().abs().sum()) for weight in loaded), rel=1e-6
    )
    asked = PUBLISHED[name].files["generation_config.json"]
    for setting in ("eos_token_id", "pad_token_id", "repetition_penalty"):
        assert asked.get(setting) in (None, getattr(lab.model.generation_config, setting))

    draw = np.random.default_rng(0)
    first, second = (Image.fromarray(draw.integers(0, 256, (112, 140, 3), dtype=np.uint8)) for _ in range(2))
    bare = lab.ask(first, QUESTION, max_new_tokens=2)
    whole = len(bare.trace.sources(0).anchor)
    for shown, images in ((first, 1), ([first, second], 2)):
        answer = lab.ask(shown, QUESTION, "illava", keep=0.5, max_new_tokens=2)
        assert {step.stage for step in answer.trace.steps if step.after < step.before} == {"encoder", "llm"}
        assert sum(answer.trace.images_per_row) == images
        read = lab.processor.batch_decode(lab.inputs([shown], [QUESTION])["input_ids"])[0]
        assert not answer.unknown_words and QUESTION in read
        if images == 1:
            assert len(answer.trace.sources(0).anchor) <= 0.55 * whole  # newlines stay, and no budget counts them
        again = spread.ask(shown, QUESTION, "illava", keep=0.5, max_new_tokens=2)
        assert again.text == answer.text
    layers = describe(spread.model).llm_layers
    assert spread is lab or any(hasattr(layer, "_hf_hook") for layer in layers[0].modules())

    with il.chat(lab, first, "illava", keep=0.5) as talk:
        talk.say(QUESTION, max_new_tokens=2)
        talk.say("And why?", max_new_tokens=2)
        assert len(talk.trace.steps) == len(answer.trace.steps), "the image is reduced once"
    film = il.read_video(draw.integers(0, 256, (4, 112, 112, 3), dtype=np.uint8), frames=2)
    if lab.model.config.model_type in FRAMES:
        answer = lab.ask(film, QUESTION, "illava", keep=0.5, max_new_tokens=2)
        assert {step.stage for step in answer.trace.steps if step.after < step.before} == {"encoder", "llm"}
    else:
        with pytest.raises(il.LabError, match="takes no videos"):
            lab.ask(film, QUESTION)

    # The hub is gone: what was fetched is enough.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(unsupported, "PATIENCE", 0.0)  # the methods are tried elsewhere
    assert main(["doctor", name]) == 0, capsys.readouterr().out
    assert f"Model {name}" in capsys.readouterr().out
