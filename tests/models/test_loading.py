"""Where models come from: published configurations, folders, a hub, and every way in which one of them cannot be had."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from helpers.checkpoints import scaled_down, trained_tokenizer
from helpers.hub_server import serving
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

import illava_lab as il
from illava_lab.models import random_models
from illava_lab.models.frames import FRAMES
from illava_lab.models.loading import check_memory, weights_bytes
from illava_lab.models.processors import build_processor, load_processor
from illava_lab.paths import data_dir

# Parameters in billions: LLaVA-1.5 is CLIP (0.304) + Vicuna (6.738 and 13.016) + projector; Yi 34B is 34.4; SigLIP 0.4
# with Qwen2 0.5B (0.494) and 7B (7.616); Qwen2-VL has 0.675 in its tower (arXiv 2409.12191, table 1). The others as the
# hub says.
BILLIONS = {
    "llava-1.5-7b": 7.06, "llava-1.5-13b": 13.35, "llava-next-34b": 34.7,
    "llava-onevision-0.5b": 0.894, "llava-onevision-7b": 8.03, "qwen2-vl-7b": 8.29, "qwen2.5-vl-7b": 8.29,
    "qwen3-vl-4b": 4.44, "internvl3-8b": 7.94,
    "llava-next-video-7b": 7.06, "smolvlm2-2.2b": 2.25, "glm-4.1v-9b": 10.3,
    "qwen3-vl-30b-a3b": 31.07,
    "qwen3.5-9b": 9.41,  # without its layer for drafts
}  # fmt: skip


EACH_FAMILY = ["llava-1.5-7b", "llava-next-34b", "llava-onevision-7b", "qwen2-vl-7b"]


# Visual tokens of one square picture: 24 x 24; a view of 24 x 24 and 48 x 48 with 48 newlines; 27 x 27 twice with 27
# newlines; 280 / 28 squared; 320 / 32 squared; a tile of 32 x 32 patches, four a token;
# 4 x 4 tiles and one of the whole, of 27 x 27 patches each, nine a token.
SQUARE = {
    "llava-1.5-7b": (336, 576),
    "llava-next-34b": (672, 2928),
    "llava-onevision-7b": (384, 1485),
    "qwen2-vl-7b": (280, 100),
    "qwen2.5-vl-7b": (280, 100),
    "qwen3-vl-4b": (320, 100),
    "qwen3-vl-30b-a3b": (320, 100),
    "qwen3.5-9b": (320, 100),
    "internvl3-8b": (448, 256),
    "llava-next-video-7b": (672, 2928),
    "smolvlm2-2.2b": (384, 17 * 81),
    "glm-4.1v-9b": (280, 100),
}


def config_of(name: str):
    return AutoConfig.for_model(**random_models._read(name)["config"])


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8))


# ---------------------------------------------------------------------------------------------- random weights
def test_the_published_configurations_have_their_published_sizes():
    assert random_models.configurations() == sorted(BILLIONS)
    for name, billions in BILLIONS.items():
        assert weights_bytes(config_of(name), torch.bfloat16) / 2e9 == pytest.approx(billions, rel=0.005)
        assert random_models._read(name)["source"].startswith("https://huggingface.co/")


@pytest.mark.parametrize("name", SQUARE)
def test_their_processors_give_the_published_number_of_visual_tokens(name):
    spec = scaled_down(name)
    config = AutoConfig.for_model(**spec["config"])
    tokenizer = random_models._tokenizer(config.get_text_config().vocab_size, **spec["tokenizer"])
    model = random_models.random_model(config, "cpu", torch.float32)
    lab = il.Lab(model, build_processor(config, spec["processor"], tokenizer, spec["chat_template"]), name)
    side, tokens = SQUARE[name]
    square = Image.new("RGB", (side, side), "teal")
    inputs = lab.inputs([square, square], ["What is on the table?", "Why?"])
    assert (inputs["input_ids"] == config.image_token_id).sum(1).tolist() == [tokens, tokens]
    assert inputs["attention_mask"][1, 0] == 0, "shorter prompts are padded on the left"
    with torch.no_grad():
        assert model.model(**inputs).last_hidden_state.isfinite().all()
    film = il.read_video(np.zeros((4, side, side, 3), np.uint8), frames=4)
    if config.model_type not in FRAMES:
        with pytest.raises(il.LabError, match="takes no videos; those that do: llava_onevision, qwen2_vl, qwen2_5_vl"):
            lab.inputs([film], ["What?"])
        return
    inputs = lab.inputs([film, [film, square]], ["What happens?", "What happens, and what is this?"])
    if config.model_type == "internvl":  # frames are pictures
        assert (inputs["input_ids"] == config.image_token_id).sum(1).tolist() == [4 * 256, 5 * 256]
    else:
        pooled = {"llava_onevision": 4 * 14 * 14 + 1, "llava_next_video": 4 * 12 * 12}
        a_film = pooled.get(config.model_type, 2 * 100)
        assert (inputs["input_ids"] == config.video_token_id).sum(1).tolist() == [a_film, a_film]
    with torch.no_grad():
        assert model.model(**inputs).last_hidden_state.isfinite().all()


def test_random_weights_are_seeded_in_the_wanted_dtype_and_answer(tmp_path, picture):
    spec = scaled_down("llava-1.5-7b")
    (tmp_path / "small.json").write_text(json.dumps(spec))
    lab, again = (il.load(f"random:{tmp_path / 'small.json'}", dtype=dtype) for dtype in ("auto", "float16"))
    assert lab.model.dtype == torch.float16, "auto is the published dtype"
    state, same = lab.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    language = lab.model.model.language_model
    assert language.norm.weight.eq(1).all() and language.embed_tokens.weight.detach().float().std() == pytest.approx(
        0.02, rel=0.05
    )
    ordinary = dict(AutoModelForImageTextToText.from_config(lab.model.config, dtype=torch.float16).named_buffers())
    for name, buffer in lab.model.named_buffers():
        assert torch.equal(buffer, ordinary[name]), f"{name}: rotary tables and positions are computed, not drawn"
    answer = lab.ask(picture, "What is this?", "illava", keep=0.5, max_new_tokens=4)
    assert answer.trace.steps[-1].after == 288 and not answer.unknown_words


def test_too_little_memory_is_refused_with_both_figures_before_any_work():
    before = psutil.Process().memory_info().rss
    gigabytes = r"needs ([\d.]+) GB \(([\d.]+) GB of weights in float32 .*but ([\d.]+) GB is free in main memory"
    if psutil.virtual_memory().available > 58e9:
        pytest.skip("this machine has room for 13 billion parameters in float32")
    with pytest.raises(il.LabError, match="'random:llava-1.5-13b' cannot be built: too little memory") as caught:
        il.load("random:llava-1.5-13b")
    needed, weights, free = map(float, re.search(gigabytes, str(caught.value)).groups())
    assert weights == pytest.approx(4 * 13.35, rel=0.005) and needed == pytest.approx(1.1 * weights, abs=0.02)
    assert free == pytest.approx(psutil.virtual_memory().available / 1e9, rel=0.2)
    with pytest.raises(il.LabError, match=r"needs 152\.9\d GB \(139\.0\d GB of weights in float32"):
        check_memory(config_of("llava-next-34b"), torch.float32, "cpu")
    assert psutil.Process().memory_info().rss - before < 300e6
    check_memory(config_of("llava-onevision-0.5b"), torch.bfloat16, "cpu")


def test_a_checkpoint_that_does_not_fit_is_refused_before_its_weights_are_read(tmp_path):
    folder = shutil.copytree(data_dir() / "model", tmp_path / "huge")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= dict(
        num_hidden_layers=500, hidden_size=16384, intermediate_size=65536, num_attention_heads=128
    )
    config["text_config"] |= dict(num_key_value_heads=128, head_dim=128)
    config["text_config"].pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(
        il.LabError, match=r"huge' cannot be loaded: too little memory: needs \d+\.\d\d GB .* is free in main memory"
    ):
        il.load(folder)


def test_quantised_weights_need_less():
    config = config_of("llava-1.5-7b")
    half, eight, four = (weights_bytes(config, torch.float16, form) / 1e9 for form in (None, "8bit", "4bit"))
    assert half == pytest.approx(14.13, abs=0.01) and 7 < eight < 7.6 and 3.6 < four < 4.2


def test_what_no_configuration_can_be_is_refused(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("no json")
    for source, says in [
        (
            "random:llava-9b",
            "no configuration for 'random:llava-9b'; there are glm-4.1v-9b, internvl3-8b, llava-1.5-13b, llava-1.5-7b, ",
        ),
        (f"random:{tmp_path / 'none.json'}", "no configuration for"),
        (f"random:{tmp_path / 'list.json'}", "must hold a JSON object, and holds list"),
        (f"random:{tmp_path / 'text.json'}", "is not laid out like"),
    ]:
        with pytest.raises(il.LabError, match=re.escape(says)):
            il.load(source)
    with pytest.raises(il.LabError, match="is built on one device, without device_map"):
        il.load("random:llava-1.5-7b", revision="main")


# ---------------------------------------------------------------------------------------------- folders
def test_pickled_weights_and_foreign_code_are_refused(tmp_path):
    pickled, foreign = tmp_path / "pickled", tmp_path / "foreign"
    shutil.copytree(data_dir() / "model", pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(
        il.LabError, match="pickled' cannot be loaded: it has its weights as 'pytorch_model.bin', a pickle that can run"
    ):
        il.load(pickled)
    foreign.mkdir()
    (foreign / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}))
    (foreign / "mine.py").write_text("raise SystemExit('this code must never run')")
    with pytest.raises(il.LabError, match="it brings code of its own, which the lab never runs"):
        il.load(foreign)


def test_dtype_auto_is_that_of_the_checkpoint(tmp_path):
    folder = shutil.copytree(data_dir() / "model", tmp_path / "half")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert il.load(folder, dtype="auto").model.dtype == torch.bfloat16
    assert il.load(folder).model.dtype == torch.float32


def test_what_a_placement_needs_is_checked_first():
    for arguments, says in [
        ({"quantize": "2bit"}, "quantize must be one of 4bit, 8bit, got '2bit'"),
        ({"device_map": "cuda"}, "device_map must be 'auto' or a dict"),
    ]:
        with pytest.raises(il.LabError, match=says):
            il.load(**arguments)
    if not torch.cuda.is_available():
        with pytest.raises(il.LabError, match="quantize='4bit' needs (bitsandbytes: pip install|an NVIDIA GPU)"):
            il.load(quantize="4bit")


def test_device_map_through_accelerate_answers_as_without(picture, tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    question = "What color is the circle?"
    plain = il.load().ask(picture, question, "illava", keep=0.5)
    assert il.load(device_map="auto").ask(picture, question, "illava", keep=0.5).text == plain.text
    # Layers on the disk go through the same hooks of accelerate as layers on another GPU.
    spread = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "cpu",
        "model.language_model": "disk",
        "lm_head": "cpu",
    }
    lab = il.load(device_map=spread)
    assert hasattr(lab.model.model.language_model.layers[0], "_hf_hook")
    answer = lab.ask(picture, question, "illava", keep=0.5)
    assert answer.text == plain.text and [s.after for s in answer.trace.steps] == [s.after for s in plain.trace.steps]


@pytest.mark.parametrize("name", [*EACH_FAMILY, "qwen2.5-vl", "qwen3-vl-4b"])
def test_saved_processors_load_with_images_and_videos(tmp_path, picture, name):
    spec = random_models._read("qwen2-vl-7b" if name == "qwen2.5-vl" else name)
    kind = "qwen2_5_vl" if name == "qwen2.5-vl" else spec["config"]["model_type"]
    config = AutoConfig.for_model(kind)
    made = build_processor(
        config, spec["processor"], trained_tokenizer(list(spec["tokenizer"]["special"])[1:]), spec["chat_template"]
    )
    made.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path, config)
    assert type(loaded).__name__ == type(made).__name__ and loaded.image_processor.backend == "pil"

    class OnlyItsConfig:  # what Lab.inputs needs to know of a model
        device, dtype = torch.device("cpu"), torch.float32

    OnlyItsConfig.config = config
    film = il.read_video(np.random.default_rng(1).integers(0, 256, (6, 96, 128, 3), dtype=np.uint8), frames=3, fps=6.0)
    shown = [film, picture] if kind in FRAMES else [picture]
    before, after = (il.Lab(OnlyItsConfig, p, name).inputs([shown], ["What is on the table?"]) for p in (made, loaded))
    assert (
        set(before) == set(after) and "pixel_values" in after and ("pixel_values_videos" in after) == (kind in FRAMES)
    )
    for key in before:
        torch.testing.assert_close(before[key], after[key], rtol=0, atol=0)
    if kind == "qwen2_5_vl":
        # Three frames in one second; two of them share a patch.
        assert after["second_per_grid_ts"] == pytest.approx([2 / 3])
    text = loaded.batch_decode(after["input_ids"], skip_special_tokens=True)[0]
    assert "What is on the table?" in text
    if kind == "qwen3_vl":  # they are shown at 1/6, 3/6 and 5/6 of a second
        assert text.index("<0.3 seconds>") < text.index("<0.8 seconds>") < text.index("What is on the table?")


# ---------------------------------------------------------------------------------------------- the hub
ASK_THE_HUB = """
import sys, illava_lab as il
for line in sys.argv[1:]:
    name, _, revision = line.partition("@")
    try:
        print(il.load(name, revision=revision or None))
    except il.LabError as error:
        print(error)
"""


def ask_the_hub(address: str, home: Path, *names: str) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    env |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", ASK_THE_HUB, *names]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def closed_address() -> str:
    """Where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.network
def test_hub_ids_revisions_and_what_can_go_wrong_there(closed_address, tmp_path):
    # The hub's client tries an address that does not answer for half a minute, so that one starts first.
    without_network = ask_the_hub(closed_address, tmp_path / "empty", "org/model")
    with serving("org/embedded", data_dir() / "model") as address:
        names = ("org/gated", "org/unknown", "org/embedded@v2", "org/embedded@v1")
        out, err = ask_the_hub(address, tmp_path / "cache", *names).communicate(timeout=120)
    gated, unknown, revision, loaded = out.splitlines()
    assert gated == (
        f"'org/gated' cannot be loaded: it is gated: accept its licence at {address}/org/gated, then log in here with: hf auth login"
    )
    assert unknown.startswith("'org/unknown' cannot be loaded: there is no such model on the hub, or it is private")
    assert revision == "'org/embedded' cannot be loaded: it has no revision 'v2'"
    assert loaded == "Lab('org/embedded', device='cpu', dtype='float32')", err
    out, err = without_network.communicate(timeout=120)
    assert out == (
        f"'org/model' cannot be loaded: it is not in the local cache, and {closed_address} cannot be reached: "
        "check the network, or give a folder\n"
    ), err
