"""Odd checkpoint folders: each is loaded, or refused in one line, soon; none gets at the person's files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.hub_server import serving
from helpers.odd_folders import MARKER, TEMPLATES, code, odd_folder, pickled
from safetensors.torch import load_file, save_file

import illava_lab as il
from illava_lab.paths import data_dir

GOOD = data_dir() / "model"
SECONDS = 10.0
FIRST_SEED = int(os.environ.get("ODD_SEED", "0"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(GOOD, tmp_path / "odd")


def refused(folder: Path) -> str:
    """The sentence with which a folder is refused: soon, on one line, and without any of its code."""
    start = time.perf_counter()
    with pytest.raises(il.LabError) as caught:
        il.load(folder)
    said = str(caught.value)
    assert time.perf_counter() - start < SECONDS and said.isprintable() and len(said) < 900
    assert said.startswith(f"{str(folder)!r} cannot be loaded: ")
    assert not (folder / MARKER).exists()
    return said.partition(" cannot be loaded: ")[2]


def change(path: Path, **values) -> None:
    """Set what a JSON file says; names may be paths such as `text_config__hidden_size`."""
    content = json.loads(path.read_text()) if path.is_file() else {}
    for name, value in values.items():
        *outer, last = name.split("__")
        inner = content
        for key in outer:
            inner = inner[key]
        inner[last] = value
    path.write_text(json.dumps(content))


# ---------------------------------------------------------------------------------------------- by the hundred
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [0, 50, 100])
def test_odd_folders_are_loaded_or_refused_in_one_line(first, tmp_path):
    for seed in range(FIRST_SEED + first, FIRST_SEED + first + 50):
        made, start, said = odd_folder(seed, GOOD, tmp_path / f"odd{seed}"), time.perf_counter(), "loaded"
        try:
            il.load(made)
        except il.LabError as error:
            said = str(error)
        assert said.isprintable() and len(said) < 900, f"seed {seed}"
        assert time.perf_counter() - start < SECONDS, f"seed {seed}"
        assert not (made / MARKER).exists(), f"seed {seed}"
        shutil.rmtree(made)


# ---------------------------------------------------------------------------------------------- weights
def test_weights_are_safetensors_inside_the_folder_or_nothing(folder):
    weights, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    names = list(load_file(weights))
    outside = folder.with_name("outside.safetensors")
    shutil.copyfile(weights, outside)
    (folder / "pytorch_model.bin").write_bytes(pickled(folder))
    (folder / "sub").mkdir()
    shutil.copyfile(weights, folder / "sub" / "a.safetensors")
    odd = [
        "pytorch_model.bin", "../outside.safetensors", str(outside), "sub/a.safetensors", "sub\\a.safetensors", "./a.safetensors",
        "", ".", "..", 3, None, [], {}, "a\0.safetensors", "https://example.org/a.safetensors", "MODEL.SAFETENSORS", "model.safetensors\n",
    ]  # fmt: skip
    for _ in ("beside a good file", "alone"):
        for name in odd:
            index.write_text(
                json.dumps({"metadata": {}, "weight_map": {**dict.fromkeys(names, weights.name), names[3]: name}})
            )
            assert "only safetensors in its folder are loaded" in refused(folder), name
        weights.unlink(missing_ok=True)
    for name in ("\x1b[2J.safetensors", "a" * 5000 + ".safetensors"):
        index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, name)}))
        assert refused(folder)
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "one.safetensors")}))
    assert "lacks the weights 'one.safetensors'" in refused(folder)
    (folder / "one.safetensors").symlink_to(outside)
    assert "has a link that leads elsewhere: 'one.safetensors'" in refused(folder)
    (folder / "one.safetensors").unlink()
    shutil.copyfile(outside, folder / "one.safetensors")
    assert il.load(folder).model.dtype == torch.float32, "an index into the folder is followed"
    index.unlink()
    (folder / "one.safetensors").unlink()
    assert "has its weights as 'pytorch_model.bin', a pickle" in refused(folder)


def test_weights_of_another_model_are_told_by_their_shapes(folder):
    whole = load_file(folder / "model.safetensors")
    layer, shown = (
        f"{start}layers.0.mlp.up_proj.weight" for start in ("language_model.model.", "model.language_model.")
    )
    for tensors, says in [
        ({**whole, layer: whole[layer][:, :3].contiguous()}, f"1 weights of other shapes than its configuration says; the first is '{shown}', (448, 3) where (448, 160) is wanted"),
        ({**whole, layer: whole[layer].flatten()}, "1 weights of other shapes"),
        ({name: tensor for name, tensor in whole.items() if name != layer}, f"lacks 1 weights, the first is '{shown}'"),
        ({**whole, layer: whole[layer].to(torch.int8)}, f"lacks 1 weights, the first is '{shown}'"),
        ({**whole, layer.replace(".0.", ".6."): whole[layer].clone()}, "weights of more layers than its configuration says: 1"),
        ({}, "lacks"),
    ]:  # fmt: skip
        (folder / "model.safetensors").unlink()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        assert says in refused(folder)
    (folder / "model.safetensors").unlink()
    save_file(
        {**whole, "head.of.another.task": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    il.load(folder)
    data = (folder / "model.safetensors").read_bytes()
    for content in (data[:100_000], data[:5], b"", data + b"more", (2**63).to_bytes(8, "little") + data[8:]):
        (folder / "model.safetensors").write_bytes(content)
        assert "the file 'model.safetensors' of its weights cannot be used: " in refused(folder)


# ---------------------------------------------------------------------------------------------- configuration
ABSURD = [
    {"text_config__num_hidden_layers": 1_000_000}, {"vision_config__num_hidden_layers": 2**40}, {"text_config__hidden_size": 2**62},
    {"text_config__vocab_size": 2**30}, {"vision_config__image_size": 10**9}, {"num_labels": 10**9}, {"text_config__num_hidden_layers": -1},
    {"text_config__num_attention_heads": 0}, {"text_config__hidden_size": "wide"}, {"text_config__hidden_size": None},
    {"vision_config__patch_size": 0}, {"text_config__rms_norm_eps": -1.0}, {"text_config__hidden_act": "nope"}, {"text_config": []},
    {"vision_config": "text"}, {"text_config__rope_parameters": {"rope_type": "nope"}}, {"text_config__rope_parameters__rope_theta": 0},
    {"vision_feature_layer": 99}, {"vision_feature_layer": "last"}, {"image_token_index": 110}, {"image_token_index": -1},
    {"text_config__pad_token_id": 10**6}, {"model_type": None}, {"model_type": ["llava"]}, {"return_dict": False},
    {"quantization_config": {"quant_method": "gptq", "bits": 4}}, {"transformers_weights": "../outside.safetensors"},
    {"attn_implementation": "org/kernel"}, {"_attn_implementation": "flash_attention_2"}, {"text_config__attn_implementation": "org/kernel:mine"},
]  # fmt: skip


@pytest.mark.parametrize("values", ABSURD, ids=lambda values: "-".join(values))
def test_configurations_that_no_model_can_have_are_refused(folder, values):
    change(folder / "config.json", **values)
    (folder / "model.safetensors").chmod(0)  # nobody but root may read these
    assert refused(folder)


def test_numbers_that_are_none_are_refused_in_every_file(folder):
    for name in ("config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"):
        whole = (folder / name).read_text()
        for number in ("NaN", "Infinity", "-Infinity", "1e999"):
            (folder / name).write_text(whole.replace("{", f'{{"odd": {number}, ', 1))
            assert f"has a file '{name}' that is no JSON: " in refused(folder)
        (folder / name).write_text(whole)


@pytest.mark.parametrize("file", ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_files_that_are_no_json_objects_are_named(folder, file):
    for content, says in [
        ("[]", "must hold a JSON object, and holds list"), ("null", "holds NoneType"), ('"text"', "holds str"),
        ("{", "is no JSON"), ("", "is no JSON"), ("[" * 100_000, "nested too deeply"), ("1" * 9999, "is no JSON"),
    ]:  # fmt: skip
        (folder / file).write_text(content)
        said = refused(folder)
        assert says in said and repr(file) in said
    (folder / file).write_bytes(b'{"a": "\xff"}')
    assert "is no JSON" in refused(folder)
    (folder / file).unlink()
    os.mkfifo(folder / file)  # reading it would wait for ever
    assert "something that is no file" in refused(folder)
    (folder / file).unlink()
    (folder / file).symlink_to("/etc/hostname")
    assert "has a link that leads elsewhere" in refused(folder) or not Path("/etc/hostname").exists()
    (folder / file).unlink()
    assert refused(folder) or file in ("tokenizer_config.json",)


def test_a_processor_that_makes_no_question_of_a_question_is_refused(folder):
    template, settings = folder / "chat_template.jinja", folder / "processor_config.json"
    whole = settings.read_text()
    for text in TEMPLATES:
        text = text.replace("MARKER", repr(str(folder / MARKER)))
        template.write_text(text, encoding="utf-8", errors="surrogatepass")
        assert refused(folder)
    template.unlink()
    assert "has no chat template" in refused(folder)
    shutil.copyfile(GOOD / template.name, template)
    for values, says in [
        ({"patch_size": 7}, "places in the prompt for a picture of which its model makes 196 visual tokens"),
        ({"image_processor__size": {"height": 56, "width": 56}}, "cannot be used"),
        ({"image_processor__size": {"height": 10**6, "width": 10**6}}, "million pixels are prepared"),
        ({"image_processor__crop_size": 10**9, "image_processor__do_center_crop": True}, "million pixels are prepared"),
        ({"image_processor__image_std": [0, 0, 0]}, "pixels are no finite numbers"),
        ({"image_processor__image_mean": "grey"}, "cannot be used"),
        ({"image_processor__image_processor_type": "Nope"}, "cannot be used"),
    ]:
        settings.write_text(whole)
        change(settings, **values)
        assert says in refused(folder), values
    settings.write_text(whole)
    for values in ({"eos_token_id": 10**6}, {"eos_token_id": "x"}, {"temperature": "hot"}, {"suppress_tokens": [-3]}, {"dola_layers": "low"},
                   {"max_new_tokens": -1}, {"bad_words_ids": [[10**6]]}, {"prompt_lookup_num_tokens": 3}):  # fmt: skip
        shutil.copyfile(GOOD / "generation_config.json", folder / "generation_config.json")
        change(folder / "generation_config.json", **values)
        assert next(iter(values)) in refused(folder)
    shutil.copyfile(GOOD / "generation_config.json", folder / "generation_config.json")
    (folder / "knows.json").write_text('{"animals": "cat"}')
    assert "knows.json" in refused(folder)


# ---------------------------------------------------------------------------------------------- arguments and names
def test_devices_and_types_that_cannot_be_are_refused():
    for arguments, says in [
        *[({"device": device}, "device must be cpu, cuda or cuda:N") for device in ("meta", "mps", "xpu", "cpu:3", "", "\ud800", None, 0, 1.5)],
        *[({"dtype": dtype}, "dtype must be one of") for dtype in (torch.float16, "int8", None, ["auto"], np.zeros(3))],
        ({"device": "cuda:99"}, "is not there"),
        ({"device_map": {"": "meta"}}, "device_map[''] must be cpu, cuda or cuda:N, got 'meta'"),
        ({"device_map": {"": 99}}, "is not there"),
        ({"device_map": {3: "cpu"}}, "device_map must have names of modules as its keys"),
        ({"quantize": ["4bit"]}, "quantize must be one of"),
        ({"revision": 3}, "revision must be"),
        ({"source": 3}, "source must be a folder"),
        ({"source": b"x"}, "source must be a folder"),
    ]:  # fmt: skip
        with pytest.raises(il.LabError, match=re.escape(says)):
            il.load(**arguments)


def test_names_of_folders_are_shown_quoted(tmp_path):
    for name in ("\x1b[31mred\nline", "\u202egnp", "a b", "quote'"):
        (tmp_path / name).mkdir()
        assert refused(tmp_path / name) == "it is no checkpoint: the folder has no config.json"
    for source in ("nul\0", "a" * 5000, "", "..//", "\ud800/x", "-/-", "a/" + "b" * 200, "org/\x1b[2J"):
        with pytest.raises(il.LabError, match=r"^'.*' cannot be loaded: ") as caught:
            il.load(source)
        assert str(caught.value).isprintable()
    odd = shutil.copytree(GOOD, tmp_path / "odd")
    change(odd / "config.json", **{"text_config__\x1b[2Jlayers": 10**6})
    assert "\\x1b[2Jlayers may be at most 1000" in refused(odd)


SENTENCES = """
import sys, illava_lab as il
for name in sys.argv[1:]:
    try: print(il.load(name))
    except il.LabError as error: print(error)
"""


@pytest.mark.slow
def test_offline_mode_changes_no_sentence_about_a_folder(tmp_path):
    for seed in range(500, 530):
        odd_folder(seed, GOOD, tmp_path / f"{seed}")
    names = sorted(str(path) for path in tmp_path.iterdir() if path.is_dir())
    said = []
    for offline in ("0", "1"):
        env = {**os.environ, "HF_HUB_OFFLINE": offline, "HF_ENDPOINT": "http://127.0.0.1:9"}
        run = subprocess.run(
            [sys.executable, "-c", SENTENCES, *names], env=env, input="y\n" * 99, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        said.append(re.sub(r"[\d.]+ GB is free", "", run.stdout).splitlines())
    assert said[0] == said[1] and len(said[0]) == len(names)
    assert not any("cache" in line for line in said[0])


def test_a_stray_file_named_strategies_replaces_nothing(tmp_path):
    (tmp_path / "strategies.py").write_text(code(tmp_path))
    script = "import illava_lab as il; print('illava' in il.strategies(), 'none' in il.strategies())"
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(il.__file__).parents[1]}"})  # fmt: skip
    assert run.stdout == "True True\n", run.stderr
    assert not (tmp_path / MARKER).exists()


@pytest.mark.slow  # the hub's client tries an address that does not answer for half a minute
@pytest.mark.network
def test_from_the_hub_only_what_is_read_is_fetched(tmp_path):
    served = shutil.copytree(GOOD, tmp_path / "served")
    for name in ("mine.py", "pytorch_model.bin", "notes.pdf"):
        (served / name).write_bytes(b"never fetched")
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    env |= {"HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def asked(name, **more):
        process = subprocess.Popen([sys.executable, "-c", SENTENCES, name], env=env | more, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        return lambda: process.communicate("y\n")

    with serving("org/model", served) as address:
        first, error = asked("org/model", HF_ENDPOINT=address)()
    assert first == "Lab('org/model', device='cpu', dtype='float32')\n", error
    fetched = {path.name for path in (tmp_path / "home").rglob("snapshots/*/*")}
    assert "model.safetensors" in fetched and not fetched & {"mine.py", "pytorch_model.bin", "notes.pdf", "README.md"}
    # While the client waits for the address, others are asked.
    silent = asked("org/model", HF_ENDPOINT="http://127.0.0.1:9")
    again, error = asked("org/model", HF_HUB_OFFLINE="1")()
    assert again == first, error
    change(served / "processor_config.json", auto_map={"AutoProcessor": "mine.Processor"})
    with serving("org/other", served) as address:
        said, error = asked("org/other", HF_ENDPOINT=address)()
    assert said.startswith("'org/other' cannot be loaded: it brings code of its own, which the lab never runs"), error
    assert not any(
        path.name == "model.safetensors" for path in (tmp_path / "home").rglob("models--org--other/snapshots/*/*")
    )
    again, error = silent()
    assert again == first, error
