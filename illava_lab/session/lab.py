"""The lab bench: a model, its processor, and questions about images."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, ProcessorMixin
from transformers.generation.streamers import BaseStreamer
from transformers.video_utils import VideoMetadata

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.method.blocks import gradients_kept
from illava_lab.models.families import shows_the_empty
from illava_lab.models.frames import check_takes_videos
from illava_lab.models.images import read_image
from illava_lab.models.processors import check_shape
from illava_lab.models.video import ImageOrVideo, Video
from illava_lab.models.vocabulary import note_on_unknown_words, unknown_words
from illava_lab.schedules.budget import AnyStrategy, choose
from illava_lab.schedules.plan import Plan
from illava_lab.session.answer import Answer, Timing
from illava_lab.session.asked import as_list, at_least_one, check_count, check_entries, check_flag, check_question
from illava_lab.session.generation import ALWAYS, check_defaults
from illava_lab.session.likely import Likely
from illava_lab.session.prompt import schedule_for
from illava_lab.session.room import check_answer, check_tokens, positions_of
from illava_lab.session.words import plain


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
    """A model with its processor. Make one with `load`.

    Threads may share it: their calls wait for each other, because a model carries one strategy at a time.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    source: str

    def inputs(
        self, images: Sequence[ImageOrVideo | Sequence[ImageOrVideo]], questions: Sequence[str]
    ) -> dict[str, Tensor]:
        """Model inputs for a batch, padded on the left: one question per entry, each with one image, several or none.

        A `Video` (see `read_video`) can stand wherever an image can, if the model's family takes videos. Special words
        of the model in a question, such as ``<image>`` or ``</s>``, are plain text there (see `plain`).

        Raises:
            LabError: an empty question or one that is no text, an image that cannot be read or is too long and narrow
                for the model's processor, numbers of questions and images that do not match, or a video for a model
                that takes none.
        """
        check_entries(images, questions)
        for question in questions:
            check_question(question)
        per_prompt = [read_shown(as_list(entry)) for entry in images]
        texts = [self._prompt(question, own) for question, own in zip(questions, per_prompt, strict=True)]
        return self._prepared(texts, per_prompt)

    def _prepared(self, texts: list[str], per_prompt: Sequence[Sequence[Any]]) -> dict[str, Tensor]:
        """Model inputs of prompts that are written out, each with the pictures and videos that it shows, in order."""
        for own in per_prompt:
            self._check_shapes(own)
        # Nested by prompt: LLaVA-OneVision cuts the only image of a prompt into crops, but not one of several.
        pictures = [[shown for shown in own if not isinstance(shown, Video)] for own in per_prompt]
        if not shows_the_empty(self.model.config) or not any(pictures):
            pictures = [own for own in pictures if own]
        videos = [shown for own in per_prompt for shown in own if isinstance(shown, Video)]
        with one_at_a_time(self.processor):
            inputs = self.processor(
                images=pictures or None,
                text=texts,
                padding=True,
                return_tensors="pt",
                padding_side="left",
                **self._video_arguments(videos),
            )
        check_tokens(self.model, inputs["input_ids"])
        inputs = inputs.to(self.model.device)
        for name in ("pixel_values", "pixel_values_videos"):
            if name in inputs:
                inputs[name] = inputs[name].to(self.model.dtype)
        return dict(inputs)

    def _check_shapes(self, own: Sequence[Any]) -> None:
        """Refuse what one prompt shows if the processor would blow it up."""
        for one in own:
            if isinstance(one, Video):
                height, width = one.frames.shape[1:3]
                settings = getattr(self.processor, "video_processor", self.processor)
                check_shape(settings, width, height, what="a frame")
            elif isinstance(one, Image):
                check_shape(self.processor, *one.size, alone=len(own) == 1)

    def _video_arguments(self, videos: list[Video]) -> dict[str, Any]:
        if not videos:
            return {}
        check_takes_videos(self.model.config, self.source)
        # Which frame is shown when: Qwen3-VL writes that into its prompts, as indices by frames a second.
        shown = [[second * v.fps for second in v.seconds] for v in videos]
        metadata = [VideoMetadata(len(v), fps=v.fps, frames_indices=at) for v, at in zip(videos, shown, strict=True)]
        return {"videos": [v.frames for v in videos], "video_metadata": metadata, "do_sample_frames": False}

    def _prompt(self, question: str, shown: Sequence[Any]) -> str:
        content = [{"type": "video" if isinstance(one, Video) else "image"} for one in shown]
        content.append({"type": "text", "text": plain(self.processor, question.strip())})
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )

    def answer(
        self,
        images: Sequence[ImageOrVideo | Sequence[ImageOrVideo]],
        questions: Sequence[str],
        max_new_tokens: int = 16,
    ) -> list[str]:
        """Greedy answers to a batch of questions; inside an `attach` block, with that reduction.

        Raises:
            LabError: as `inputs`, or a `max_new_tokens` that is no whole number of at least 1, or for which the model
                has no positions left.
        """
        max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        inputs = self.inputs(images, questions)
        with one_at_a_time(self.model):
            return self._decode(self._generate(inputs, max_new_tokens), inputs)

    def _generate(self, inputs: dict[str, Tensor], max_new_tokens: int, **kwargs: Any) -> Tensor:
        self._check(inputs, max_new_tokens)
        kwargs = {**ALWAYS, "do_sample": False, "return_dict_in_generate": False, **kwargs}
        with gradients_kept():
            return self.model.generate(**inputs, max_new_tokens=max_new_tokens, **kwargs)

    def _check(self, inputs: dict[str, Tensor], max_new_tokens: int) -> None:
        check_defaults(self.model)
        check_answer(self.model, positions_of(self.model, inputs), max_new_tokens)

    def _decode(self, generated: Tensor, inputs: dict[str, Tensor]) -> list[str]:
        new = generated[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def ask(
        self,
        image: ImageOrVideo | Sequence[ImageOrVideo],
        question: str,
        strategy: AnyStrategy | None = None,
        keep: float | None = None,
        *,
        flops: float | None = None,
        preset: str | None = None,
        schedule: Plan | None = None,
        max_new_tokens: int = 64,
        graphs: bool = False,
    ) -> Answer:
        """Answer one question about an image, a video, or several of them, with visual tokens reduced.

        Without a strategy that is the bare model's answer; a strategy without a budget gets ``keep=0.5``, and
        `Answer.budget` says so. Words of the question that the model does not know are named in a warning, together
        with what it knows.

        Args:
            strategy: a registered name, a Strategy class or an instance.
            keep: fraction of the visual tokens that the last LLM layer sees; the strategy's own layers share the work.
            flops: instead of `keep`, the fraction of the bare model's prefill FLOPs for this prompt.
            preset: instead of both, a paper's setting by name, with its strategy; `il.presets` lists them.
            schedule: instead of all of these, exact layers and amounts.
            max_new_tokens: where the answer is cut off.
            graphs: on CUDA, with captured graphs; see `il.attach`.

        Raises:
            LabError: an image that cannot be read, an empty question, an unknown strategy or preset, a budget that is
                none, that contradicts another one or the strategy, or that it cannot reach; a question or an answer
                for which the model has too few positions.
        """
        chosen, budget = choose(strategy, keep, flops, preset, schedule)
        max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        check_flag("graphs", graphs)
        inputs, clock, likely = self.inputs([at_least_one("image", image)], [question]), _Clock(), Likely()
        self._check(inputs, max_new_tokens)
        schedule = schedule_for(self.model, chosen, budget, inputs)
        with attach(self.model, chosen, schedule, graphs=graphs) as trace:
            start = time.perf_counter()
            noting = LogitsProcessorList([likely])
            generated = self._generate(inputs, max_new_tokens, streamer=clock, logits_processor=noting)
        first, last = clock.times[1], clock.times[-1]  # entry 0 is the prompt
        timing = Timing(first - start, last - first, len(clock.times) - 1)
        tokenizer, asked = self.processor.tokenizer, plain(self.processor, question)
        with one_at_a_time(self.processor):
            unknown, note = unknown_words(tokenizer, asked), note_on_unknown_words(tokenizer, asked)
            words = likely.words(tokenizer)
        if note:
            warnings.warn(note, stacklevel=2)
        return Answer(
            self._decode(generated, inputs)[0],
            trace,
            timing,
            unknown,
            note or "",
            strategy=chosen.label,
            budget=str(budget),
            words=words,
        )

    def __repr__(self) -> str:
        return f"Lab({self.source!r}, device={str(self.model.device)!r}, dtype={str(self.model.dtype)[6:]!r})"


def read_shown(shown: Sequence[Any]) -> list[Any]:
    """The same with every picture read; videos stay as they are.

    Raises:
        LabError: a picture that cannot be read.
    """
    return [one if isinstance(one, Video) else read_image(one) for one in shown]


def check_lab(lab: Any) -> None:
    """Raise LabError unless this is a lab."""
    if not isinstance(lab, Lab):
        raise LabError(f"lab must be a Lab, such as il.load() gives, got {type(lab).__name__}")
