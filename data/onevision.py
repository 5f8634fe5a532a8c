"""LLaVA-OneVision's kind: what the model is trained on, phase by phase, and how it is scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import clip_llama
import decoder
import films
import large
import numpy as np
import questions
import scenes
import several
import sights
import torch
from concepts import GROUPS as CONCEPTS
from concepts import KINDS
from decoder import Batch, answer_loss
from losses import align_loss, dense_loss, fit, oracle
from packing import my_steps, pack
from saving import save
from seeking import look_loss, seek, there
from sights import ANCHOR, GROUPS, KIND, NEWLINE, Shown
from siglip_qwen import GRID, build_model, build_processor, tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset
from transformers import LlavaForConditionalGeneration, LlavaOnevisionForConditionalGeneration

FIRST = Path(__file__).parent / "model"  # LLaVA-1.5's kind, trained
PATCHES = GRID * GRID
SIZES = list(GROUPS.values())
ROOM = 150  # tokens of packed questions
KEPT = 150  # positions of a picture in crops that the oracle shows
MIDDLE = 3  # layers of the decoder behind which places and movements are told
WAYS, PLACES = 1 + len(films.WAYS), sights.PLACES["frame"] + max(films.LENGTHS)
WORD, DIGIT = KINDS.index(scenes.WORDS[0]), KINDS.index(scenes.DIGITS[0])


@dataclass(frozen=True)
class Kind:
    """One way of showing: what is drawn, and what is asked about it."""

    name: str
    categories: tuple[str, ...]
    shown: Shown
    make: Callable[[np.random.Generator, str, bool], object]
    look: Callable[[object], tuple[np.ndarray, np.ndarray]]
    ask: Callable


def _kinds() -> dict[str, Kind]:
    closely = sights.closely()
    kinds = [
        Kind("scene", scenes.CATEGORIES, closely, scenes.make_scene, sights.look_closely, questions.ask),
        Kind("fine", large.CATEGORIES, closely, large.make_scene, sights.look_closely, large.ask),
    ]
    for count in (2, 3, 4):
        shown, make = sights.each(count), partial(_pictures, count)
        kinds.append(Kind(f"several {count}", several.CATEGORIES, shown, make, sights.look_at_each, several.ask))
    for length in films.LENGTHS:
        shown, make = sights.frames(length), partial(_film, length)
        kinds.append(Kind(f"film {length}", films.CATEGORIES, shown, make, sights.watch, films.ask))
    return {kind.name: kind for kind in kinds}


def _pictures(count: int, rng: np.random.Generator, split: str, _: bool) -> tuple[scenes.Scene, ...]:
    return several.make_pictures(rng, split, count)


def _film(length: int, rng: np.random.Generator, split: str, blinks: bool) -> films.Film:
    return films.make_film(rng, split, length, blinks)


KIND_OF = _kinds()
NAMES = list(KIND_OF)


class Sights(IterableDataset):
    """For each step a batch of every way of showing, by step number, so that a resumed run goes on where it stopped."""

    ROWS: ClassVar = {"eyes": (5, 5, 6, 2), "mind": (4, 4, 4, 4), "align": (8, 8, 8, 3), "joint": (5, 4, 5, 6)}

    def __init__(self, phase: str, split: str, seed: int, start: int, stop: int) -> None:
        self.phase, self.split, self.seed, self.steps = phase, split, seed, (start, stop)
        self.tokenizer = tokenizer()

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in my_steps(*self.steps):
            rng = np.random.default_rng([self.seed, list(Pupil.RECIPE).index(self.phase), step])
            length = films.LENGTHS[step // 3 % 3]
            names = ("scene", "fine", f"several {2 + step % 3}", f"film {length}")
            counts = self.ROWS[self.phase]
            batches = []
            for name, count in zip(names, counts, strict=True):
                rows = [self.example(rng, KIND_OF[name]) for _ in range(count)]
                batch = {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}
                batches.append(batch | {"kind": torch.tensor(NAMES.index(name))})
            yield batches

    def example(self, rng: np.random.Generator, kind: Kind) -> dict[str, np.ndarray]:
        seeing = self.phase in ("eyes", "align")
        more = 0.7 if seeing else 0.5 if self.phase == "joint" and kind.shown.pooled else 0.0
        what = kind.make(rng, self.split, rng.random() < more)  # crowded pictures, films in which something blinks
        views, labels = kind.look(what)
        row = {"labels": labels[..., : len(GROUPS)], "ways": labels[..., len(GROUPS)]}
        if self.phase != "mind":
            row["pixels"] = views
        if not seeing:
            row |= pack(
                lambda category: kind.ask(what, rng, category), kind.categories, rng, ROOM, self.tokenizer, seek
            )
        return row


class Pupil(nn.Module):
    """The model with what only its training needs: heads that name what patches show, and where and how tokens are."""

    # Of each phase: steps, learning rate, the last part of the steps in which it falls, weights of the losses.
    RECIPE: ClassVar = {
        "eyes": (1000, 2e-3, 0.0, {"dense": 1.0}),
        "mind": (7500, 2e-3, 0.3, {"answer": 1.0, "place": 0.3, "way": 0.3, "look": 0.3}),
        "align": (2000, 2e-3, 0.4, {"dense": 1.0, "align": 1.0}),
        "joint": (1300, 1e-3, 0.6, {"dense": 0.5, "align": 0.3, "answer": 1.0, "place": 0.1, "way": 0.1, "look": 0.1}),
    }
    Batches = Sights

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = build_model(seed)
        width = self.model.config.text_config.hidden_size
        self.head = nn.Linear(width, sum(SIZES))
        self.codes = nn.Embedding(2 * GRID, width)  # of a patch's row and column
        nn.init.normal_(self.codes.weight, std=0.05)
        self.place, self.way = nn.Linear(width, PLACES), nn.Linear(width, WAYS)
        encode = tokenizer().convert_tokens_to_ids
        begin(self.model)
        self.concepts = [[encode(list(words)) for words in CONCEPTS[group]] for group in ("kind", "color", "anchor")]

    def learning(self, phase: str) -> list[nn.Module]:
        """The parts that change in a phase."""
        core = self.model.model
        eyes = [core.vision_tower, core.multi_modal_projector, self.head]
        mind = [core.language_model, self.model.lm_head, self.codes, self.place, self.way, Newline(core)]
        return {"eyes": eyes, "align": eyes, "mind": mind, "joint": eyes + mind}[phase]

    def tables(self) -> list[Tensor]:
        """An embedding for each concept, by group: sums of words, and codes of rows and columns."""
        words, codes = self.model.get_input_embeddings().weight, self.codes.weight
        kind, color, anchor = (torch.stack([words[ids].sum(0) for ids in group]) for group in self.concepts)
        rows, columns = (F.pad(part, (0, 0, 1, 0)) for part in codes.split(GRID))
        return [kind, color, rows, columns, anchor]

    def see(self, pixels: Tensor) -> Tensor:
        """(views, patches, C) projected tokens, by the same path as LlavaOnevisionModel.get_image_features."""
        pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        core = self.model.model
        hidden = core.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        return core.multi_modal_projector(hidden)

    def show(self, visual: Tensor, shown: Shown) -> Tensor:
        """(rows, L, C) the prompt up to the question, from the tokens (rows, views, patches, C) of its views."""
        core, rows = self.model.model, len(visual)
        source = torch.from_numpy(shown.source).to(visual.device)
        text = core.get_input_embeddings()(torch.from_numpy(shown.ids).to(visual.device))
        if shown.pooled:
            visual = pooled(visual)
        tokens = visual.flatten(1, 2)[:, source.clamp(min=0)]
        text = torch.where((source == NEWLINE)[:, None], core.image_newline, text).expand(rows, -1, -1)
        return torch.where((source >= 0)[:, None], tokens, text)

    def say(self, shown: Tensor, places: Tensor, length: int, batch: Batch) -> tuple[Tensor, ...]:
        """Hidden states of the text, and of what is shown (at these places of `length`) behind MIDDLE layers; where two
        heads of the next layer look."""
        batch = {**batch, "begin": torch.tensor(length, device=shown.device)}
        return decoder.run(self.model.model.language_model, shown, places, batch, MIDDLE)

    def losses(self, phase: str, batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
        """The losses, and right (1) or wrong (0) one by one for all that can be scored."""
        parts: dict[str, list[Tensor]] = defaultdict(list)
        scores: dict[str, list[float]] = defaultdict(list)
        tables = self.tables()
        if phase != "mind":
            visual = self.see(torch.cat([batch["pixels"].flatten(0, 1) for batch in batches]))
            labels = torch.cat([batch["labels"].flatten(0, 1) for batch in batches])
            logits = self.head(visual).float().split(SIZES, -1)
            parts["dense"].append(dense_loss(logits, labels))
            scores |= seen(logits, labels)
            if phase != "eyes":
                parts["align"].append(align_loss(visual, labels, tables))
            of_batches = visual.split([batch["labels"].shape[:2].numel() for batch in batches])
        for index, batch in enumerate(batches if phase in ("mind", "joint") else []):
            kind, size = KIND_OF[NAMES[int(batch["kind"])]], batch["labels"].shape[:3]
            mine = noisy_oracle(batch, tables, kind) if phase == "mind" else of_batches[index].unflatten(0, size[:2])
            shown = self.show(mine, kind.shown)
            length, places = shown.shape[1], torch.arange(shown.shape[1], device=shown.device).expand(size[0], -1)
            if phase == "mind" and length > 2 * KEPT:
                places = kept(batch["labels"], kind.shown)
                shown = shown.gather(1, places[..., None].expand(-1, -1, shown.shape[2]))
            hidden, middle, looks = self.say(shown, places, length, batch)
            loss, answers = answer_loss(self.model.lm_head, hidden, batch)
            parts["answer"].append(loss)
            for category, later, right in answers.tolist():
                scores[f"{kind.name.split()[0]}: {kind.categories[category]}"].append(right)
                if later:
                    scores["later turns"].append(right)
            wanted = there(batch["seek"], batch["labels"], kind.shown)
            wanted = wanted.gather(-1, places[:, None, None].expand(*wanted.shape[:3], -1))
            loss, right = look_loss(looks, wanted, batch)
            parts["look"].append(loss)
            scores[f"{kind.name.split()[0]}: look"] += right
            place = torch.from_numpy(kind.shown.place).to(middle.device)[places]
            told = self.place(middle)
            parts["place"].append(F.cross_entropy(told.flatten(0, 1), place.flatten(), ignore_index=-1))
            scores["place"] += (told.argmax(-1) == place)[place >= 0].float().tolist()
            if kind.shown.pooled:
                ways = pooled(batch["ways"][..., None].float(), "max")[..., 0].flatten(1).long()
                told = self.way(middle[:, place[0] >= 0])
                parts["way"].append(F.cross_entropy(told.flatten(0, 1), ways.flatten()))
                scores["way"] += (told.argmax(-1) == ways)[ways > 0].float().tolist()
        return {name: torch.stack(losses).mean() for name, losses in parts.items()}, scores

    @torch.no_grad()
    def refit(self, seed: int, to: Callable[[list[Batch]], list[Batch]]) -> None:
        """Least squares from the trained tower's features to the oracle tokens, so that alignment starts near its goal:
        from the head's own coordinates its first gradients would wreck the tower."""
        projector, tables = self.model.model.multi_modal_projector, self.tables()
        inside, wanted, logits = [], [], []
        keep = projector.linear_2.register_forward_pre_hook(lambda _, args: inside.append(args[0].flatten(0, 1)))
        for batches in map(to, Sights("eyes", "train", seed, 0, 24)):
            visual = self.see(torch.cat([batch["pixels"].flatten(0, 1) for batch in batches]))
            labels = torch.cat([batch["labels"].flatten(0, 1) for batch in batches])
            logits.append(self.head(visual).flatten(0, 1))
            wanted.append(oracle(labels, tables).flatten(0, 1))
        keep.remove()
        fit(projector.linear_2, torch.cat(inside), torch.cat(wanted))
        fit(self.head, projector.linear_2(torch.cat(inside)), torch.cat(logits))

    def save(self, out: Path) -> None:
        save(self.model, build_processor(), out)


@torch.no_grad()
def begin(model: LlavaOnevisionForConditionalGeneration) -> None:
    """The decoder begins where the first model's ended, with the words that both know: from nothing it did not learn in
    2,700 steps to find what is asked about. Its Qwen2 adds nothing but biases, which begin at zero."""
    first = LlavaForConditionalGeneration.from_pretrained(FIRST, dtype=torch.float32)
    for name, layer in model.model.language_model.named_children():
        if name != "embed_tokens":
            layer.load_state_dict(getattr(first.model.language_model, name).state_dict(), strict=False)
    theirs, mine = clip_llama.tokenizer().get_vocab(), tokenizer().get_vocab()
    both = sorted(theirs.keys() & mine.keys())
    to, of = [mine[word] for word in both], [theirs[word] for word in both]
    model.get_input_embeddings().weight[to] = first.get_input_embeddings().weight[of]
    model.lm_head.weight[to] = first.lm_head.weight[of]


class Newline(nn.Module):
    """The embedding at the end of a row, as a part of the model that can be trained."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.image_newline = core.image_newline


def pooled(visual: Tensor, by: str = "mean") -> Tensor:
    """(rows, views, patches, C) -> a quarter of the patches: what LlavaOnevisionModel.apply_pooling does."""
    cells = visual.unflatten(2, (GRID // 2, 2, GRID // 2, 2)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return cells.mean(3) if by == "mean" else cells.amax(3)


def kept(labels: Tensor, shown: Shown) -> Tensor:
    """(rows, KEPT) which positions the oracle shows: all text, newlines and anchors, else mostly patches on objects."""
    source = torch.from_numpy(shown.source).to(labels.device)
    tokens = labels.flatten(1, 2)[:, source.clamp(min=0)]
    chance = torch.where(tokens[..., KIND] > 0, 1.0, 0.15) * torch.rand(tokens.shape[:2]).to(labels.device)
    chance[(tokens[..., ANCHOR] == 1) | (source < 0)] = 2.0
    return chance.topk(KEPT, 1).indices.sort(1).values


def noisy_oracle(batch: Batch, tables: list[Tensor], kind: Kind) -> Tensor:
    """Oracle tokens as imperfect eyes would give them: some patches missed, all of them blurred, and names too small to
    be read in the view of the whole."""
    labels = batch["labels"].clone()
    chance = torch.rand(labels.shape[:3]).to(labels.device)
    missed = (chance < 0.2) & (labels[..., ANCHOR] == 0)
    labels = labels.masked_fill(missed[..., None], 0)
    if kind.name in ("scene", "fine"):
        whole = labels[:, 0, :, KIND]
        unread = ((whole >= WORD) & (chance[:, 0] > 0.4)) | ((whole >= DIGIT) & (whole < WORD) & (chance[:, 0] > 0.8))
        labels[:, 0, :, KIND] = whole.masked_fill(unread, 0)
    visual = oracle(labels, tables)
    blur = (torch.randn(visual.shape) * 0.3 * torch.rand(visual.shape[0], 1, 1, 1)).to(visual)
    return visual + blur * visual.detach().std()


def seen(logits: tuple[Tensor, ...], labels: Tensor) -> dict[str, list[float]]:
    """What the anchors see, and the ground."""
    scores, busy, anchor = {}, labels[..., KIND] > 0, labels[..., ANCHOR] == 1
    right = logits[KIND].argmax(-1) == labels[..., KIND]
    for name, kinds in (("shapes", scenes_of(scenes.SHAPES)), ("digits", scenes_of(scenes.DIGITS)),
                        ("words", scenes_of(scenes.WORDS))):  # fmt: skip
        of = anchor & (labels[..., KIND] >= kinds[0]) & (labels[..., KIND] <= kinds[1])
        scores["see " + name] = right[of].float().tolist()
    scores["see ground"] = right[~busy].float().tolist()
    scores["see color"] = (logits[1].argmax(-1) == labels[..., 1])[anchor].float().tolist()
    scores["see anchor"] = (logits[ANCHOR].argmax(-1) == labels[..., ANCHOR])[anchor].float().tolist()
    return scores


def scenes_of(kinds: tuple[str, ...]) -> tuple[int, int]:
    return KINDS.index(kinds[0]), KINDS.index(kinds[-1])
