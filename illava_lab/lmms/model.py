"""The model that lmms-eval finds under the name illava_lab."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from loguru import logger
from tqdm.auto import tqdm

from illava_lab.errors import LabError
from illava_lab.lmms import MODEL
from illava_lab.lmms.asker import Asker
from illava_lab.lmms.generation import generation_of
from illava_lab.lmms.model_args import ModelArguments
from illava_lab.lmms.requests import Request
from illava_lab.measuring import distributed


class IllavaLab(lmms):
    """A lab, with one strategy at one budget.

    Args:
        given: what ``--model_args`` says; see `ModelArguments`.

    Raises:
        LabError: as `ModelArguments` and `il.load`.
    """

    is_simple = False

    def __init__(self, **given: Any) -> None:
        super().__init__()
        given.pop("max_batch_size", None)  # lmms-eval's own, for models that try sizes
        arguments = ModelArguments.of(given)
        distributed.is_first()  # makes "cuda" this process's own
        strategy, budget = arguments.chosen()
        lab = arguments.lab()
        self._set(Asker(lab, strategy, budget, arguments.graphs, arguments.batch(), arguments.frames), MODEL)
        logger.info(f"{lab!r} with {strategy.label}, {budget}")

    @classmethod
    def asking(cls, asker: Asker, name: str) -> IllavaLab:
        """The same with what is there already; what fails is kept in `failure`, and the processes stay together."""
        made = cls.__new__(cls)
        lmms.__init__(made)
        made._set(asker, name)
        made._keeps_failure = True
        return made

    def _set(self, asker: Asker, name: str) -> None:
        self.asker, self.name = asker, name
        self._ignored: set[str] = set()
        self._keeps_failure = False
        self.failure: Exception | None = None

    def __repr__(self) -> str:
        return self.name

    @property
    def device(self) -> torch.device:
        """Where processes exchange what they have."""
        shared: torch.device | None = distributed.device()
        return self.asker.lab.model.device if shared is None else shared

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Of each request its answer."""
        return self._tried(self.asker.single, requests, "")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[GenerationResult]:
        """Of each request its answers, one a round."""
        return [GenerationResult(said) for said in self._tried(self.asker.conversations, requests, [])]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not computed.

        Raises:
            LabError: always.
        """
        raise LabError("illava_lab generates answers and computes no likelihoods: choose tasks of type generate_until")

    def _tried(self, ask: Callable[[list[Request]], list[Any]], given: list[Instance], nothing: Any) -> list[Any]:
        try:
            requests = [self._request(one) for one in given]
            with self._bar(len(requests)):
                return ask(requests)
        except Exception as error:
            if not self._keeps_failure:
                raise
            self.failure = error
            return [nothing for _ in given]

    def _bar(self, count: int) -> tqdm:
        # What lmms-eval runs by itself leaves its progress in a log, as its own models do.
        off = self.rank != 0 or (self._keeps_failure and not sys.stderr.isatty())
        bar = tqdm(total=count, desc=self.name, unit="doc", delay=2, disable=off, dynamic_ncols=True)
        self.asker.done = bar.update
        return bar

    def _request(self, given: Instance) -> Request:
        text, said, generation, doc, task, split = given.args
        docs = self.task_dict[task][split]
        read = generation_of(generation)
        for name in read.ignored:
            if name not in self._ignored:
                self._ignored.add(name)
                logger.warning(f"{name} of generation_kwargs means nothing to illava_lab, and is left out")
        return Request(
            task=task,
            doc=doc,
            text=text if isinstance(text, str) else "",
            said=partial(_said, said, docs, doc),
            first=partial(_said, said, docs, 0),
            generation=read,
            padding=bool((given.metadata or {}).get("__padding_only__")),
        )


def _said(messages: Any, docs: Any, doc: int, **of_round: Any) -> Any:
    return messages(docs[doc], **of_round)
