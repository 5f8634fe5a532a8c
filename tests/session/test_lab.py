"""The lab bench with the embedded model: what a person types first, and what they get wrong first."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import random_llava
from helpers import reference
from helpers.attached import structure
from transformers import Gemma3Config, LlamaConfig

import illava_lab as il
from illava_lab.measuring.predict import correct, predict
from illava_lab.models.families import check_supported
from illava_lab.paths import data_dir

BAR, CATEGORY_BAR = 0.95, 0.85


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(scope="module")
def task():
    return il.load_task("test")


@pytest.fixture(scope="module")
def few(task):
    return task.limited(24)


def inputs_of(lab, task, count):
    samples = task.samples.head(count)
    return lab.inputs([task.image(i) for i in samples["image_id"]], list(samples["question"]))


# ---------------------------------------------------------------------------------------------- the checkpoint
@pytest.mark.slow
def test_the_checkpoint_is_small_and_loads_with_no_code_of_ours():
    folder = data_dir() / "model"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 30e6
    code = (
        "import sys; from transformers import AutoProcessor, LlavaForConditionalGeneration as L; "
        "m, i = L.from_pretrained(sys.argv[1], output_loading_info=True); p = AutoProcessor.from_pretrained(sys.argv[1], backend='pil'); "
        "assert not i['missing_keys'] and not i['unexpected_keys']; c = m.config; "
        "print(type(m).__name__, c.vision_config.model_type, (c.vision_config.image_size // c.vision_config.patch_size) ** 2, "
        "c.vision_config.num_hidden_layers, c.text_config.model_type, c.text_config.num_hidden_layers)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd="/")
    kind, tower, tokens, encoder, decoder, llm = run.stdout.split()
    assert (kind, tower, decoder) == ("LlavaForConditionalGeneration", "clip_vision_model", "llama"), run.stderr
    assert int(tokens) >= 196 and int(encoder) >= 8 and int(llm) >= 6


@pytest.mark.slow
def test_the_embedded_model_meets_its_bar(lab, task):
    task = task.limited(320)  # `results/` has all of it
    right = correct(predict(lab, task, batch_size=32), task)
    by_category = {c: right[(task.samples["category"] == c).to_numpy()].mean() for c in task.categories}
    assert right.mean() >= BAR, by_category
    assert min(by_category.values()) >= CATEGORY_BAR, by_category


# ---------------------------------------------------------------------------------------------- asking
def test_it_answers_with_none_and_with_half_of_the_tokens(lab, few):
    counts = {"none": 0, "illava": 0}
    for row in few.samples.itertuples():
        for strategy, keep in (("none", 1.0), ("illava", 0.5)):
            answer = lab.ask(few.image(row.image_id), row.question, strategy=strategy, keep=keep)
            counts[strategy] += answer.text == row.answer
            assert answer.timing.prefill > 0 and answer.timing.tokens >= 2
    assert counts["none"] >= 0.85 * len(few)
    assert counts["illava"] >= 0.5 * len(few), "far above chance; how far is what compare measures"
    steps = answer.trace.steps
    encoder, llm = ([s.after for s in steps if s.stage == stage] for stage in ("encoder", "llm"))
    assert 196 > encoder[0] > encoder[-1] > llm[-1] == 98


def test_a_schedule_of_ones_own(lab, few):
    row = few.samples.iloc[0]
    schedule = il.Schedule(encoder={3: 0.8, 4: 100}, llm={2: 0.5})
    answer = lab.ask(few.image(row.image_id), row.question, strategy="illava", schedule=schedule)
    assert [(s.layer, s.after) for s in answer.trace.steps] == [(3, 157), (4, 100), (2, 50)]


def test_several_images_and_a_batch(lab, few):
    one, two = (few.image(i) for i in few.samples["image_id"].unique()[:2])
    batch = lab.inputs([[one, two], one], ["What word is written?", "What color is the circle?"])
    assert (batch["input_ids"] == lab.model.config.image_token_id).sum(1).tolist() == [392, 196]
    with il.attach(lab.model, "illava", il.Schedule({2: 0.5}, {2: 0.5})) as trace, torch.no_grad():
        lab.model(**batch)
    assert trace.images_per_row == [2, 1]
    assert [len(trace.sources(i).anchor) for i in range(3)] == [49, 49, 49]


def test_words_that_the_model_does_not_know_are_named(lab, few):
    image = few.image(few.samples["image_id"][0])
    with pytest.warns(UserWarning, match="this model does not know 'giraffe'; it knows the .*circle.*red"):
        answer = lab.ask(image, "What colour is the giraffe?")
    assert answer.unknown_words == ("giraffe",) and answer.note.startswith("this model does not know 'giraffe'")
    assert lab.ask(image, "What color is the circle?").unknown_words == ()


# ---------------------------------------------------------------------------------------------- invariants
SCHEDULES = {"illava": ({2: 150, 4: 110}, {2: 70, 4: 30}), "tome": ({1: 150, 3: 110}, {}), "fastv": ({}, {2: 80})}


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_identity_batch_and_restoration(lab, few, name):
    encoder, llm = SCHEDULES[name]
    inputs = inputs_of(lab, few, 6)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        bare = lab.model(**inputs).logits
        before = structure(lab.model)
        with il.attach(lab.model, name, il.Schedule(dict.fromkeys(encoder, 1.0), dict.fromkeys(llm, 1.0))):
            assert torch.equal(lab.model(**inputs).logits[real], bare[real])
        with il.attach(lab.model, name, il.Schedule(encoder, llm)):
            together = lab.model(**inputs).logits[:, -1]
            for i, row in enumerate(few.samples.head(6).itertuples()):
                alone = lab.model(**lab.inputs([few.image(row.image_id)], [row.question])).logits[0, -1]
                torch.testing.assert_close(together[i], alone, atol=1e-3, rtol=1e-3)
        assert structure(lab.model) == before
        assert torch.equal(lab.model(**inputs).logits, bare)


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_cached_generation_equals_recomputation_by_hand(lab, few, name):
    encoder, llm = SCHEDULES[name]
    inputs = inputs_of(lab, few, 1)
    prompt = inputs["input_ids"].shape[1]
    with il.attach(lab.model, name, il.Schedule(encoder, llm)):
        out = lab.model.generate(
            **inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    for step, got in enumerate(out.logits):
        want = reference.logits(
            lab.model, out.sequences[0, : prompt + step].tolist(), inputs["pixel_values"], prompt=prompt,
            image_token=lab.model.config.image_token_id, encoder=encoder, llm=llm, rule=name,
        )  # fmt: skip
        torch.testing.assert_close(got[0], want, atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------------------------------------- mistakes
def test_bad_questions_are_refused_before_any_work(lab, few, tmp_path):
    image = few.image(few.samples["image_id"][0])
    for arguments, says in [
        ((image, "  "), "question must be a sentence, got '  '"),
        ((tmp_path / "none.png", "What?"), "no image file"),
        ((image, "What?", "ilava"), "did you mean illava"),
        ((image, "What?", "illava", 0), r"keep must be a fraction in \(0, 1\], got 0"),
        ((image, "What?", "illava", 1.1), "keep must be a fraction"),
    ]:
        with pytest.raises(il.LabError, match=says):
            lab.ask(*arguments)
    with pytest.raises(il.LabError, match="1 questions need as many entries in images, got 2"):
        lab.inputs([image, image], ["What?"])


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path):
    empty, wrong, cut, partial = (tmp_path / name for name in ("empty", "wrong", "cut", "partial"))
    empty.mkdir()
    LlamaConfig().save_pretrained(wrong)
    for folder in (cut, partial):
        shutil.copytree(data_dir() / "model", folder)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    config = json.loads((partial / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1
    config["text_config"].pop("layer_types", None)
    (partial / "config.json").write_text(json.dumps(config))
    (tmp_path / "file").write_text("")
    for source, says in [
        (empty, "empty' cannot be loaded: it is no checkpoint: the folder has no config.json"),
        (wrong, "wrong' cannot be loaded: model family 'llama' is not supported; supported: llava"),
        (cut, "cut' cannot be loaded: the file 'model.safetensors' of its weights cannot be used: "),
        (partial, "partial' cannot be loaded: it lacks 9 weights, the first is 'model.language_model.layers.6"),
        (tmp_path / "file", "it is a file; give the folder"),
        (tmp_path / "nowhere", "neither a folder nor a hub id"),
        ("nowhere", "neither a folder nor a hub id"),
    ]:
        with pytest.raises(il.LabError, match=says) as caught:
            il.load(source)
        assert "\n" not in str(caught.value)


def test_towers_and_decoders_that_the_hooks_do_not_know_are_refused():
    config = random_llava("clip-llama").config
    config.text_config.model_type = "gemma"
    with pytest.raises(il.LabError, match="decoder 'gemma' is not supported; supported: llama, mistral, qwen2"):
        check_supported(config)
    config.vision_config.model_type = "pixtral"
    with pytest.raises(il.LabError, match="vision tower 'pixtral' is not supported"):
        check_supported(config)


def test_a_family_that_cannot_be_reduced_is_refused_with_the_reason():
    with pytest.raises(il.LabError, match="'gemma3' is not supported .*window.*both directions.*; supported: llava"):
        check_supported(Gemma3Config())


def test_device_and_dtype_are_checked_first():
    with pytest.raises(il.LabError, match="dtype must be one of float32, bfloat16, float16, auto, got 'int8'"):
        il.load(dtype="int8")
    with pytest.raises(il.LabError, match="device must be cpu, cuda or cuda:N, got 'gpu'"):
        il.load(device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(il.LabError, match="finds no CUDA GPU"):
            il.load(device="cuda")


@pytest.mark.network
def test_a_hub_id_without_network_is_one_sentence():
    code = (
        "import illava_lab as il\ntry: il.load('llava-hf/llava-1.5-7b-hf')\nexcept il.LabError as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere"},
    )
    wanted = "'llava-hf/llava-1.5-7b-hf' cannot be loaded: it is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it"
    assert run.stdout.startswith(wanted), run.stderr
    assert len(run.stdout.strip().splitlines()) == 1
