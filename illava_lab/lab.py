"""The lab bench: a model, its processor, and questions about images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, PreTrainedModel, ProcessorMixin
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging

from illava_lab.attach import attach
from illava_lab.errors import LabError
from illava_lab.families import check_supported
from illava_lab.images import ImageLike, read_image
from illava_lab.paths import data_dir
from illava_lab.registry import make_strategy
from illava_lab.schedule import Schedule
from illava_lab.strategy import Strategy
from illava_lab.trace import Trace

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Timing:
    """Wall times of one answer, in seconds.

    Attributes:
        prefill: from the call to the first new token.
        decode: from the first new token to the last.
        tokens: new tokens, the end token included.
    """

    prefill: float
    decode: float
    tokens: int


@dataclass(frozen=True)
class Answer:
    """What `Lab.ask` returns.

    Attributes:
        text: the answer.
        trace: every reduction step, and the patches that each survivor stands for.
        timing: of this one answer; a single run, not a measurement (see `compare` for that).
        unknown_words: words of the question that the model's vocabulary does not have.
    """

    text: str
    trace: Trace
    timing: Timing
    unknown_words: tuple[str, ...] = ()


class _Clock(BaseStreamer):
    """Notes when `generate` hands over the prompt and each new token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Lab:
    """A model with its processor. Make one with `load`."""

    model: PreTrainedModel
    processor: ProcessorMixin
    source: str

    def inputs(self, images: Sequence[ImageLike | Sequence[ImageLike]], questions: Sequence[str]) -> dict[str, Tensor]:
        """Model inputs for a batch: one question per entry, each with one image or several. Padded on the left.

        Raises:
            LabError: an empty question, an image that cannot be read, or as many questions as images do not match.
        """
        if len(images) != len(questions) or not questions:
            raise LabError(f"{len(questions)} questions need as many entries in images, got {len(images)}")
        for question in questions:
            if not isinstance(question, str) or not question.strip():
                raise LabError(f"question must be a sentence, got {question!r}")
        per_prompt = [
            [read_image(image) for image in (entry if isinstance(entry, (list, tuple)) else [entry])] for entry in images
        ]
        texts = [self._prompt(question, len(own)) for question, own in zip(questions, per_prompt, strict=True)]
        flat = [image for own in per_prompt for image in own]
        inputs = self.processor(
            images=flat or None, text=texts, padding=True, return_tensors="pt", padding_side="left"
        )
        inputs = inputs.to(self.model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        return dict(inputs)

    def _prompt(self, question: str, images: int) -> str:
        content = [{"type": "image"}] * images + [{"type": "text", "text": question.strip()}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def answer(
        self, images: Sequence[ImageLike | Sequence[ImageLike]], questions: Sequence[str], max_new_tokens: int = 16
    ) -> list[str]:
        """Greedy answers to a batch of questions; inside an `attach` block, with that reduction."""
        inputs = self.inputs(images, questions)
        return self._decode(self._generate(inputs, max_new_tokens), inputs)

    def _generate(self, inputs: dict[str, Tensor], max_new_tokens: int, **kwargs: Any) -> Tensor:
        return self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, **kwargs)

    def _decode(self, generated: Tensor, inputs: dict[str, Tensor]) -> list[str]:
        new = generated[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def ask(
        self,
        image: ImageLike | Sequence[ImageLike],
        question: str,
        strategy: str | Strategy | type[Strategy] = "none",
        keep: float = 1.0,
        schedule: Schedule | None = None,
        max_new_tokens: int = 64,
    ) -> Answer:
        """Answer one question about an image (or several), with visual tokens reduced.

        Args:
            keep: fraction of the visual tokens that the last LLM layer sees; the strategy's own layers share the work.
            schedule: exact layers and amounts instead of `keep`.

        Raises:
            LabError: an image that cannot be read, an empty question, an unknown strategy, keep outside (0, 1].
        """
        strategy = make_strategy(strategy)
        if schedule is None:
            schedule = Schedule.for_budget(strategy, self.model, keep=keep)
        inputs, clock = self.inputs([image], [question]), _Clock()
        with attach(self.model, strategy, schedule) as trace:
            start = time.perf_counter()
            generated = self._generate(inputs, max_new_tokens, streamer=clock)
        first, last = clock.times[1], clock.times[-1]  # entry 0 is the prompt
        timing = Timing(first - start, last - first, len(clock.times) - 1)
        return Answer(self._decode(generated, inputs)[0], trace, timing, self._unknown_words(question))

    def _unknown_words(self, question: str) -> tuple[str, ...]:
        tokenizer = self.processor.tokenizer
        if tokenizer.unk_token_id is None or not tokenizer.is_fast:
            return ()
        encoded = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return tuple(question[start:end] for token, (start, end) in pairs if token == tokenizer.unk_token_id)

    def __repr__(self) -> str:
        return f"Lab({self.source!r}, device={str(self.model.device)!r}, dtype={str(self.model.dtype)[6:]!r})"


def load(source: str | PathLike | None = None, device: str = "cpu", dtype: str = "float32") -> Lab:
    """A lab with the embedded model (no argument: CPU, no download), a checkpoint folder, or a hub id.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        LabError: a folder that is no checkpoint, an unsupported family, a hub id that cannot be fetched, an unknown
            dtype or a device that is not there.
    """
    if dtype not in DTYPES:
        raise LabError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    _check_device(device)
    name = "embedded" if source is None else str(source)
    folder = data_dir() / "model" if source is None else Path(source)
    where = _checkpoint(name, folder)
    try:
        check_supported(AutoConfig.from_pretrained(where))
        # The PIL image processors give the same pixels whether torchvision is installed or not.
        processor = AutoProcessor.from_pretrained(where, backend="pil")
        with _quiet_loading(folder.is_dir()):
            model, report = LlavaForConditionalGeneration.from_pretrained(
                where, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True
            )
    except LabError as error:
        raise LabError(f"{name}: {error}") from None
    except (OSError, ValueError, SafetensorError) as error:
        raise LabError(f"{name} cannot be loaded: {_first_sentence(error)}") from error
    if report["missing_keys"]:
        # transformers would go on with random numbers in their place.
        missing = sorted(report["missing_keys"])
        raise LabError(f"{name} lacks {len(missing)} weights, the first is {missing[0]}")
    return Lab(model.to(device).eval(), processor, name)


@contextmanager
def _quiet_loading(local: bool) -> Iterator[None]:
    """No progress bar for the second that reading local weights takes; downloads keep theirs."""
    shown = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_device(device: str) -> None:
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise LabError(f"device must be cpu, cuda or cuda:N, got {device!r}") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise LabError(f"device {device!r} is not there: torch {torch.__version__} finds no CUDA GPU; use device='cpu'")


def _checkpoint(name: str, folder: Path) -> str:
    """What `from_pretrained` is given: a folder with a configuration, or a hub id."""
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise LabError(f"{name} is no checkpoint: the folder has no config.json")
        return str(folder)
    if folder.exists():
        raise LabError(f"{name} is a file; give the folder of a checkpoint or a hub id such as llava-hf/llava-1.5-7b-hf")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise LabError(f"{name} is neither a folder nor a hub id such as llava-hf/llava-1.5-7b-hf")
    return name


def _first_sentence(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
