"""The machine: every visual token on its way from the picture to the answer, in one live figure."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import anywidget
import traitlets

from illava_lab.errors import LabError, one_of, reason
from illava_lab.measuring.rows import several
from illava_lab.method.keep import check_share
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.models.video import ImageOrVideo
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import at_least_one, check_question
from illava_lab.session.lab import Lab, check_lab
from illava_lab.views.colors import look
from illava_lab.views.pictures import to_png
from illava_lab.views.run import Run, run_of
from illava_lab.views.run_picture import run_figure, run_words
from illava_lab.widgets.front import script, style
from illava_lab.widgets.output import show_widget

KEEPS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BARE = "none"
STRATEGIES = ("illava", "tome", "fastv", "random", "downsample")

Shown: TypeAlias = "ImageOrVideo | Sequence[ImageOrVideo]"
Settings: TypeAlias = dict[str, Any]


class _Figure(anywidget.AnyWidget):
    """The front-end. `catalog`: what can be chosen; `start` and `shown`: settings at first and now; `asked`: settings
    that the page wants to see, with a number; `answer`: the run for them, or why there is none."""

    _esm = script("machine")
    _css = style("machine")
    catalog = traitlets.Dict().tag(sync=True)
    start = traitlets.Dict().tag(sync=True)
    shown = traitlets.Dict().tag(sync=True)
    asked = traitlets.Dict().tag(sync=True)
    answer = traitlets.Dict().tag(sync=True)


class Machine:
    """See how tokens flow from layer to layer, melt where they merge and fall where they are pruned; and what is said.

    Method, budget, picture, question and the handle of every layer can be moved. What was computed once is shown at
    once; everything else is computed when it is asked for, and the figure says so. Plain functions do the same:
    `illava_lab.views.run.run_of` gives a run, `illava_lab.views.run_picture.run_figure` draws it.

    Args:
        image: what the prompt shows: a picture, a `Video`, or a list of them; or several of these to choose from, by
            name.
        question: a sentence, or several to choose from; where there are several images, these for each by name. On the
            page any other can be typed.
        strategy, keep: what is shown first.
        strategies: which methods can be chosen; `strategy` is one of them in any case.
        keeps: which budgets can be chosen, as fractions of the visual tokens that the last LLM layer sees.

    Raises:
        LabError: as `Lab.ask`; no image or no question, a strategy or budget that is given twice, images and questions
            with other names.
    """

    def __init__(
        self,
        lab: Lab,
        image: Shown | Mapping[str, Shown],
        question: str | Sequence[str] | Mapping[str, str | Sequence[str]],
        strategy: str | Strategy = "illava",
        keep: float = 0.5,
        *,
        strategies: Sequence[str | Strategy] = STRATEGIES,
        keeps: Sequence[float] = KEEPS,
    ) -> None:
        check_lab(lab)
        self._lab, self._pictures = lab, _pictures(image)
        questions = _questions(question, self._pictures)
        first, keep = make_strategy(strategy), check_share("keep", keep)
        chosen = {made.label: made for made in map(make_strategy, several("strategies", strategies))}
        self._methods = chosen if first.label in chosen else {first.label: first, **chosen}
        shares = sorted({check_share("keeps", share) for share in several("keeps", keeps)} | {keep})
        self._runs: dict[str, Run] = {}
        start = self._settings(0, next(iter(questions.values()))[0], first.label, keep)
        views = [self._bare(number, asked[0])["views"] for number, asked in enumerate(questions.values())]
        self._figure = _Figure(
            catalog={
                "pictures": [
                    {"name": name, "views": seen, "questions": asked}
                    for (name, asked), seen in zip(questions.items(), views, strict=True)
                ],
                "methods": [_method(label, made) for label, made in self._methods.items()],
                "keeps": shares,
            },
            start=start,
        )
        self._tell(start)
        self._figure.observe(lambda change: self._answer(change["new"]), names="asked")

    # ---------------------------------------------------------------------------------------------- what is shown
    @property
    def run(self) -> Run:
        """What is shown, as `run_of` gives it."""
        return self._run(self._figure.shown)

    @property
    def settings(self) -> dict[str, Any]:
        """What is shown: picture (its name), question, strategy (its label), keep, and schedule where layers were moved
        one by one (a `Schedule`, else None)."""
        shown = self._figure.shown
        return {
            "picture": list(self._pictures)[shown["picture"]],
            "question": shown["question"],
            "strategy": shown["method"],
            "keep": shown["keep"],
            "schedule": self._plan(shown),
        }

    def set(
        self,
        *,
        picture: str | None = None,
        question: str | None = None,
        strategy: str | None = None,
        keep: float | None = None,
    ) -> None:
        """Show something else. What is not given stays; a handle that was moved goes back.

        Args:
            picture: by its name. It comes with its first question, unless another is given.
            strategy: the label of one that can be chosen.

        Raises:
            LabError: no such picture or strategy, or as `Lab.ask`.
        """
        names, shown = list(self._pictures), self._figure.shown
        if picture is not None:
            one_of("picture", picture, tuple(names))
        if strategy is not None:
            one_of("strategy", strategy, tuple(self._methods))
        number = shown["picture"] if picture is None else names.index(picture)
        asked = self._figure.catalog["pictures"][number]["questions"][0] if picture is not None else shown["question"]
        self._tell(
            self._settings(
                number,
                asked if question is None else check_question(question),
                strategy or shown["method"],
                shown["keep"] if keep is None else check_share("keep", keep),
            )
        )

    def show(self, **settings: Any) -> None:
        """Display the machine, with a picture of what it shows for viewers without a kernel. Settings as in `set`."""
        if settings:
            self.set(**settings)
        self._figure.start = self._figure.shown  # Reset goes where the reader began
        show_widget(self._figure, to_png(run_figure(self.run)), run_words(self.run))

    def store(self, wanted: Sequence[Settings]) -> dict[str, Any]:
        """The catalogue and the runs for these settings, for a page without a kernel; `illava.machine.mount` takes it.

        Many runs share what they hold: `parts` has the `layers` and the single moves of all of them, each once, and a
        run has their numbers.

        Args:
            wanted: each with picture (its number), question, method (its label), keep, and schedule (None, or
                {"image": None, "encoder": {layer: fraction}, "llm": {layer: fraction}}).

        Raises:
            LabError: one of them cannot be run.
        """
        parts: dict[str, int] = {}
        runs = []
        for settings in wanted:
            run = _without_views(self._run(settings))
            run["layers"] = parts.setdefault(json.dumps(run["layers"]), len(parts))
            run["moves"] = [parts.setdefault(json.dumps(move), len(parts)) for move in run["moves"]]
            runs.append({**settings, "run": run})
        shared = [json.loads(part) for part in parts]
        return {"catalog": self._figure.catalog, "start": self._figure.start, "parts": shared, "runs": runs}

    # ---------------------------------------------------------------------------------------------- computing
    @staticmethod
    def _settings(picture: int, question: str, method: str, keep: float) -> Settings:
        return {"picture": picture, "question": question, "method": method, "keep": keep, "schedule": None}

    def _answer(self, asked: Settings) -> None:
        """The page wants to see something: give it the run, or the reason why there is none."""
        settings = {name: asked[name] for name in ("picture", "question", "method", "keep", "schedule")}
        answer: dict[str, Any] = {"id": asked["id"], "settings": settings}
        try:
            answer["run"] = _without_views(self._run(settings))
        except KeyboardInterrupt:
            answer["error"] = "interrupted"
        except Exception as error:  # whatever it is, the page waits for a word
            answer["error"] = str(error) if isinstance(error, LabError) else reason(error)
        if "run" in answer and not asked["quiet"]:
            self._figure.shown = settings
        self._figure.answer = answer

    def _tell(self, settings: Settings) -> None:
        """Show something that the page has not asked for."""
        run = self._run(settings)
        self._figure.shown = settings
        self._figure.answer = {"id": 0, "settings": settings, "run": _without_views(run), "told": True}

    def _bare(self, picture: int, question: str) -> Run:
        return self._run(self._settings(picture, question, BARE, 1.0))

    def _run(self, settings: Settings) -> Run:
        """The run of these settings, computed once."""
        key = json.dumps([settings["picture"], settings["question"], settings["method"], settings["schedule"]])
        key += f"{settings['keep']:g}" if settings["schedule"] is None else ""
        if key not in self._runs:
            image, question = list(self._pictures.values())[settings["picture"]], check_question(settings["question"])
            method = BARE if settings["method"] == BARE else self._methods[settings["method"]]
            plan = self._plan(settings)
            budget = {"keep": settings["keep"]} if plan is None else {"schedule": plan}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # on words the model does not know: the figure says it
                self._runs[key] = run_of(self._lab, image, question, method, **budget)
        return self._runs[key]

    def _plan(self, settings: Settings) -> Schedule | None:
        """The schedule of handles that were moved, {"image": fraction, "encoder": {layer: fraction}, "llm": ...}."""
        given, anatomy = settings["schedule"], describe(self._lab.model)
        if given is None:
            return None
        encoder, llm = (
            {int(layer): float(share) for layer, share in given[stage].items()} for stage in ("encoder", "llm")
        )
        image = given.get("image")
        if image is not None:
            wanted = max(1, round(image * anatomy.patches))
            image = self._methods[settings["method"]].reachable_keep(wanted, anatomy.grid)
        return Schedule(encoder, llm, image)


def _without_views(run: Run) -> Run:
    """The catalogue has them, once for all runs of a picture."""
    return {name: value for name, value in run.items() if name != "views"}


def _method(label: str, strategy: Strategy) -> dict[str, str]:
    color, marker = look(label)
    about = (type(strategy).__doc__ or "").strip().partition("\n")[0]
    return {"label": label, "color": color, "marker": marker, "about": about}


def _pictures(image: Any) -> dict[str, Any]:
    """Name -> what a prompt shows."""
    named = dict(image) if isinstance(image, Mapping) else {"picture": image}
    if not named:
        raise LabError(f"image must name at least one image, for example {{'photo': 'photo.jpg'}}, got {image!r}")
    for name, shown in named.items():
        if not isinstance(name, str):
            raise LabError(f"image must have names that are words, got {name!r}")
        at_least_one("image", shown)
    return named


def _questions(question: Any, pictures: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name of a picture -> its questions, at least one."""
    if isinstance(question, Mapping) and set(question) != set(pictures):
        raise LabError(f"question must have the names of the images, {', '.join(pictures)}; got {', '.join(question)}")
    given = {name: question[name] if isinstance(question, Mapping) else question for name in pictures}
    out = {name: several("question", asked) for name, asked in given.items()}
    for name, asked in out.items():
        if not asked:
            raise LabError(f"question must hold at least one sentence for {name!r}, got {given[name]!r}")
        for sentence in asked:
            check_question(sentence)
    return out
