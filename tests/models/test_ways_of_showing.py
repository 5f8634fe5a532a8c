"""Several pictures, large ones and films: right answers, and a training that sees what transformers will give."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import illava_lab as il

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))  # the scripts there are no package

import films
import large
import onevision
import scenes
import several
import siglip_qwen

SEEDS = st.integers(0, 10**6)
NAME = rf"({'|'.join(scenes.COLORS)}) ({'|'.join(scenes.SHAPES)})"


def named(items: tuple[scenes.Item, ...], name: str) -> list[scenes.Item]:
    return [item for item in items if name in (item.name, item.kind, f"{item.kind} {item.value}")]


def answer_about_pictures(question: str, pictures: tuple[scenes.Scene, ...]) -> str:
    """The answer derived anew, from the words of the question and the pictures' objects only."""
    shown = [picture.items for picture in pictures]
    numbers = [int(number) - 1 for number in re.findall(r"picture (\d)", question)]
    if question.startswith(("Which picture", "In which")):
        name = re.search(r"(?:shows|is) the ([a-z]+ \w+)\?", question)[1]
        (found,) = [k for k, items in enumerate(shown) if named(items, name)]
        return str(found + 1)
    if "many pictures" in question:
        wanted = re.search(r" a ([a-z]+)", question)[1]
        has = lambda items: any(wanted == i.kind or (wanted == i.value and i.kind in scenes.SHAPES) for i in items)
        return str(sum(map(has, shown)))
    if question.startswith("Do "):
        wanted = question.rstrip("?").split()[-1]
        a, b = (next(item for item in shown[k] if item.kind == wanted) for k in numbers)
        return "yes" if a.value == b.value else "no"
    if "is only in" in question:
        other = {item.kind for k, items in enumerate(shown) if k != numbers[0] for item in items}
        (found,) = {item.kind for item in shown[numbers[0]] if item.kind in scenes.SHAPES} - other
        return found
    if "comes first" in question:
        first = {}
        for color, kind in re.findall(NAME, question):
            name = f"{color} {kind}"
            first[name] = next(k for k, items in enumerate(shown) if named(items, name))
        return min(first, key=first.__getitem__)
    kind = question.split()[3 if "color" in question else 1]
    kind = re.search(r"is the (\w+) in", question)[1] if "color" in question else kind
    (item,) = [item for item in shown[numbers[0]] if item.kind == kind]
    return item.value


def answer_about_large(question: str, scene: scenes.Scene) -> str:
    half = scene.ground.side / 2
    place = lambda i: (
        ("top", "bottom")[i.box[1] + i.box[3] > 2 * half] + (" left", " right")[i.box[0] + i.box[2] > 2 * half]
    )
    if question.startswith("Where"):
        (item,) = named(scene.items, re.search(r"the ([a-z]+ \w+)\?", question)[1])
        return place(item)
    kind = re.search(r"(word|digit|shape)", question)[1]
    of_kind = [item for item in scene.items if (item.kind in scenes.SHAPES if kind == "shape" else item.kind == kind)]
    if "many" in question or question.startswith("Count"):
        return str(len(of_kind))
    (item,) = [item for item in of_kind if question.rstrip("?.").endswith(place(item))]
    return item.kind if re.match(r"(What|Which) shape", question) else item.value


def answer_about_film(question: str, film: films.Film) -> str:
    frames = [scene.items for scene in film.scenes()]
    where = lambda name: [next(iter(named(items, name)), None) for items in frames]
    if "digit" in question:
        seen = [item for item in where("digit") if item]
        return seen[0 if "first" in question else -1].value
    if "color" in question:
        items = [item for item in where(re.search(r"is the (\w+)|does the (\w+)", question)[0].split()[-1]) if item]
        return items[0 if "at first" in question else -1].value
    names = [" ".join(found) for found in re.findall(NAME, question)]
    way = lambda name: np.subtract(where(name)[-1].box, where(name)[0].box)[:2]
    if "move" in question:
        x, y = way(names[0])
        return ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")
    if "faster" in question:
        return max(names, key=lambda name: np.abs(way(name)).max())
    there = {name: [item is not None for item in where(name)] for name in names}
    if "often" in question:
        return str(sum(present for present, _ in groupby(there[names[0]])))
    return min(names, key=lambda name: there[name].index(True))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from(["train", "validation", "test"]))
def test_answers_follow_from_what_is_shown(seed: int, split: str) -> None:
    rng = np.random.default_rng(seed)
    pictures = several.make_pictures(rng, split, int(rng.integers(2, 5)))
    scene, film = large.make_scene(rng, split), films.make_film(rng, split, int(rng.choice(films.LENGTHS)))
    for module, what, read in (
        (several, pictures, answer_about_pictures), (large, scene, answer_about_large), (films, film, answer_about_film),
    ):  # fmt: skip
        for category in module.CATEGORIES:
            for _ in range(3):
                question = module.ask(what, rng, category)
                assert question is None or read(question.text, what) == question.answer, question


def test_every_word_is_in_the_vocabulary() -> None:
    rng, tokenizer = np.random.default_rng(0), siglip_qwen.tokenizer()
    for _ in range(60):
        pictures, scene = several.make_pictures(rng, "train", 4), large.make_scene(rng, "train")
        film = films.make_film(rng, "train", 8)
        for module, what in ((several, pictures), (large, scene), (films, film)):
            for question in filter(None, (module.ask(what, rng, category) for category in module.CATEGORIES)):
                ids = tokenizer.encode(f"{question.text} {question.answer}")
                assert tokenizer.unk_token_id not in ids, question


@pytest.fixture(scope="module")
def pupil_and_lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[onevision.Pupil, il.Lab]:
    folder = tmp_path_factory.mktemp("untrained") / "onevision"
    pupil = onevision.Pupil(0).eval()
    pupil.save(folder)
    return pupil, il.load(folder)


@pytest.mark.parametrize("name", ["scene", "fine", "several 3", "film 8"])
def test_the_decoder_is_trained_on_what_it_will_get(pupil_and_lab: tuple[onevision.Pupil, il.Lab], name: str) -> None:
    """Pixels, order of tokens, newlines, pooling and text: all as processor and model make them of the pictures."""
    pupil, lab = pupil_and_lab
    kind, rng = onevision.KIND_OF[name], np.random.default_rng(1)
    what = kind.make(rng, "test", False)
    if isinstance(what, scenes.Scene):
        shown: object = scenes.draw(what)
    elif isinstance(what, films.Film):
        shown = il.read_video([Image.fromarray(view) for view in kind.look(what)[0]], frames=len(what))
    else:
        shown = [scenes.draw(picture) for picture in what]
    got: dict[str, torch.Tensor] = {}
    catch = lambda _, args, kwargs: got.update(kwargs)
    hook = pupil.model.model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    with torch.no_grad():
        mine = pupil.show(pupil.see(torch.from_numpy(kind.look(what)[0]))[None], kind.shown)
        pupil.model(**lab.inputs([shown], ["What color is the circle?"]))
    hook.remove()
    text = lab.processor.tokenizer.encode("What color is the circle? ASSISTANT:", add_special_tokens=False)
    assert got["inputs_embeds"].shape[1] == mine.shape[1] + len(text)
    assert torch.allclose(got["inputs_embeds"][:, : mine.shape[1]], mine, atol=1e-5)
