"""The course: predictions, quizzes, the set-up of every notebook, and checks that name what is wrong."""

from __future__ import annotations

import html
import io
import re
import sys
import types
import urllib.parse
from contextlib import redirect_stdout
from importlib.metadata import version

import pandas as pd
import pytest
import torch
from helpers.checks import each_was_tried, says_what_is_wrong
from torch.nn.functional import normalize

import illava_lab as il
import illava_lab.measuring.statistics
from illava_lab import LabError, course
from illava_lab.course import (
    Prediction,
    Question,
    Quiz,
    checks_merging,
    checks_redundancy,
    checks_start,
    session,
    teaching,
    terms,
)


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What is displayed, by mime type."""
    shown: list[dict] = []
    for module in (session, teaching, terms):
        monkeypatch.setattr(module, "display", lambda data, raw: shown.append(data))
    return shown


# --------------------------------------------------------------------------------------------- predictions
def test_a_prediction_is_committed_to_and_then_the_measured_answer_appears_beside_it(displayed: list[dict]) -> None:
    guess = Prediction("Which is larger?", ["<left>", "right"])
    guess.show()
    page = displayed[0]["text/html"]
    assert "&lt;left&gt;" in page and "application/vnd.jupyter.widget-view+json" in displayed[0]
    _, buttons, commit, outcome = guess._box.children
    assert commit.disabled
    buttons.value = "<left>"  # clicks
    buttons.value = "right"
    assert guess.choice is None and not outcome.value and not commit.disabled, "a choice may change until it counts"
    commit.click()
    assert guess.choice == "right" and buttons.disabled and commit.disabled
    assert "You said:</b> right" in outcome.value and "Measured" not in outcome.value
    assert guess.compare("<left>") == "Measured: <left> (you predicted: right)."
    assert "You said:</b> right" in outcome.value and "Measured:</b> &lt;left&gt;" in outcome.value
    assert guess.compare("right") == "Measured: right (as you predicted)."
    with pytest.raises(LabError, match="committed to already: 'right'"):
        guess.choose("<left>")


def test_what_was_measured_is_told_only_to_those_who_committed(displayed: list[dict]) -> None:
    guess = Prediction("Which is larger?", ["<left>", "right"])
    guess.show()
    outcome = guess._box.children[-1]
    said = guess.compare("right")
    assert "right" not in said and "right" not in outcome.value and "Commit" in outcome.value
    assert len(displayed) == 1 and "Measured" not in displayed[0]["text/html"]
    page = teaching.pages()["Which is larger?"]  # what is stored for readers without a kernel
    folded = re.findall(r"<details><summary>(.*?)</summary>(.*?)</details>", page)
    assert folded == [("&lt;left&gt;", "Measured: right (you predicted: &lt;left&gt;)."), ("right", "Measured: right (as you predicted).")]  # fmt: skip
    guess.choose("<left>")
    assert "Measured:</b> right" in outcome.value


def test_code_between_backticks_is_shown_as_code_and_nothing_else_as_markup(displayed: list[dict]) -> None:
    guess = Prediction("Does `a < b` hold in <b>`, for 1 ` 2?", ["`yes`", "no"])
    guess.show()
    page = displayed[0]["text/html"]
    assert "Does <code>a &lt; b</code> hold in &lt;b&gt;<code>, for 1 </code> 2?" in page
    assert "<li><code>yes</code></li>" in page
    buttons = guess._box.children[1]
    assert [label for label, _ in buttons.options] == ["yes", "no"], "a button shows plain text"
    guess.choose("`yes`")
    assert buttons.value == "`yes`" and "You said:</b> <code>yes</code>" in guess._box.children[-1].value
    Quiz(Question("What is `x`?", right=("`1`", "See `y`."), wrong=[("`<i>`", "No.")])).show()
    page = displayed[1]["text/html"]
    for shown in ("What is <code>x</code>?", "<code>1</code>", "See <code>y</code>.", "<code>&lt;i&gt;</code>"):
        assert shown in page


def test_a_prediction_refuses_what_is_no_choice() -> None:
    guess = Prediction("Which is larger?", ["left", "right"])
    with pytest.raises(LabError, match="choice must be one of"):
        guess.choose("up")
    with pytest.raises(LabError, match="measured must be one of"):
        guess.compare("up")
    with pytest.raises(LabError, match="two different ones"):
        Prediction("?", ["a", "a"])


def test_a_finding_and_the_glossary_are_pages(displayed: list[dict]) -> None:
    course.finding("2 < 3")
    assert displayed[0]["text/html"] == "<p><b>2 &lt; 3</b></p>" and displayed[0]["text/plain"] == "2 < 3"
    course.glossary()
    assert all(f">{html.escape(term)}</th>" in displayed[1]["text/html"] for term in ("KV cache", "N", "CLS token"))
    course.glossary("N")
    assert displayed[2]["text/plain"] == f"N: {terms.SYMBOLS['N']}"
    with pytest.raises(LabError, match="term must be one of"):
        course.glossary("nonsense")


@pytest.mark.parametrize(("low", "high", "word"), [(0.1, 0.3, "better"), (-0.3, -0.1, "worse"), (-0.1, 0.1, "these questions cannot tell"), (float("nan"), float("nan"), "these questions cannot tell")])  # fmt: skip
def test_an_outcome_follows_the_interval(low: float, high: float, word: str) -> None:
    difference = il.measuring.statistics.Difference((low + high) / 2, low, high)
    assert course.outcome(difference) == word and word in course.OUTCOMES


# --------------------------------------------------------------------------------------------- quizzes
def test_every_answer_is_explained_by_call_and_by_click(displayed: list[dict]) -> None:
    question = Question("2 + 2?", right=("4", "Count."), wrong=[("5", "One too many."), ("22", "That is text.")])
    quiz = Quiz(question, Question("1 + 1?", right=("2", "So."), wrong=[("3", "Not so.")]))
    assert list(question.answers) == list(Question(*question).answers), "always the same order"
    assert quiz.answer(1, "4") == "Right. Count." and quiz.answer(1, "22") == "No. That is text."
    quiz.show()
    page = displayed[0]["text/html"]
    assert all(text in page for text in ("2 + 2?", "One too many.", "That is text.", "Not so."))
    _, buttons, reason = quiz._box(1, question).children
    buttons.value = "5"
    assert reason.value == "No. One too many."
    with pytest.raises(LabError, match="between 1 and 2"):
        quiz.answer(3, "4")
    with pytest.raises(LabError, match="answer must be one of"):
        quiz.answer(1, "6")
    with pytest.raises(LabError, match="two different ones"):
        Quiz(Question("?", right=("a", ""), wrong=[("a", "")]))


# --------------------------------------------------------------------------------------------- set-up
def test_set_up_says_what_is_there_and_repeats_itself() -> None:
    said, drawn = io.StringIO(), []
    for _ in range(2):
        with redirect_stdout(said):
            lab = course.set_up(seed=3)
        drawn.append(torch.rand(3))
    assert lab.source == "embedded" and torch.equal(*drawn)
    for word in ("device    cpu", "GiB of memory", f"torch {torch.__version__}", "embedded model", "seed      3"):
        assert word in said.getvalue()


def test_set_up_turns_on_the_widgets_of_colab(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    colab = types.ModuleType("google.colab")
    colab.output = types.SimpleNamespace(enable_custom_widget_manager=lambda: calls.append("on"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    course.set_up()
    assert calls == ["on"]


def test_the_last_cell_says_licences_what_to_cite_and_opens_an_issue_with_versions(displayed: list[dict]) -> None:
    course.feedback("01_token_redundancy", "git+https://github.com/illava-lab/illava-lab@v1")
    page, text = displayed[0]["text/html"], displayed[0]["text/plain"]
    address = urllib.parse.urlsplit(html.unescape(re.search(r'href="([^"]+)"', page)[1]))
    asked = urllib.parse.parse_qs(address.query)
    assert address.path == "/illava-lab/illava-lab/issues/new" and address.netloc == "github.com"
    assert asked["title"][0].startswith("01_token_redundancy") and f"torch {torch.__version__}" in asked["body"][0]
    assert address.geturl() in text
    for part in ("Apache-2.0", "@software{illava_lab,", f"version = {{{version('illava-lab')}}}", "url = {https://github.com/illava-lab/illava-lab}",
                 "@inproceedings{hu2026illava,", "arXiv:2412.06263"):  # fmt: skip
        assert part in text and part in html.unescape(page), part
    entries = course.session.citation("git+https://github.com/illava-lab/illava-lab")
    assert entries.count("{") == entries.count("}"), "BibTeX counts its braces"


# --------------------------------------------------------------------------------------------- exercises
PROFILE = pd.DataFrame(
    {"stage": ["encoder", "encoder", "llm", "llm"], "layer": [0, 1, 0, 1], "similarity": [0.3, 0.4, 0.6, 0.8]}
)


def entropy_of(values: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(values / values.sum()).sum()


def recycled(score: torch.Tensor, keep: int, target: int = -1, sort: bool = True, largest: bool = True) -> tuple:
    order = score.argsort(descending=largest)
    kept = order[:keep].sort().values if sort else order[:keep]
    return kept, order[:keep][target], order[keep:]


def best_pairs(keys: torch.Tensor, r: int, unit: bool = True, sign: int = 1) -> list[tuple[int, int]]:
    keys = normalize(keys, dim=1) if unit else keys
    best, partner = (sign * keys[::2] @ keys[1::2].T).max(1)
    return [(2 * int(a), 2 * int(partner[a]) + 1) for a in best.argsort(descending=True)[:r]]


def nearest_of_all(keys: torch.Tensor, r: int) -> list[tuple[int, int]]:
    unit = normalize(keys, dim=1)
    best, partner = (unit @ unit.T).max(1)
    return [(int(a), int(partner[a])) for a in best.argsort(descending=True)[:r]]


def up(count: int, reverse: bool) -> torch.Tensor:
    weight = torch.arange(1.0, count + 2)
    return (weight.flip(0) if reverse else weight) / weight.sum()


def slider(*texts: str) -> types.SimpleNamespace:
    """A keep slider with these answers at 1.0, 0.5, 0.3 and so on."""
    return types.SimpleNamespace(
        keeps=[1.0, 0.5, 0.3, 0.2][: len(texts)], answers=[types.SimpleNamespace(text=text) for text in texts]
    )


def smallest_norm(score) -> dict[str, type[il.Strategy]]:
    """A registry with a strategy of that name, which is not in the real one."""

    class SmallestNorm(il.Scorer):
        """Keep the visual tokens with the smallest norm."""

        name = "smallest-norm"

        def score(self, tokens):
            return score(tokens.hidden.norm(dim=-1))

    return {"smallest-norm": SmallestNorm}


def dropped(reduce) -> dict[str, type[il.Strategy]]:
    """A registry with a strategy of that name, made from iLLaVA's map."""

    class Dropped(il.Strategy):
        """The survivors of iLLaVA, and nothing else."""

        name, kind = "dropped", "prune"

        def map(self, tokens, keep):
            return reduce(il.get_strategy("illava")().map(tokens, keep), tokens, keep)

    return {"dropped": Dropped}


LOSSES = pd.Series({"color": 0.05, "count": 0.2, "word": 0.0})

heavy = lambda a: set((a > 5 * a.mean()).nonzero()[:, 0].tolist())

# check, further arguments, answer, what the message must name (None: it is right)
ANSWERS = [
    (checks_start.check_edge, (slider("2", "2", "7", "2"),), 0.5, None),
    (checks_start.check_edge, (slider("2", "2", "2"),), 0.3, None),
    (checks_start.check_edge, (slider("2", "2", "7", "2"),), 0.2, "at keep 0.3 the answer is already wrong"),
    (checks_start.check_edge, (slider("2", "2", "7", "2"),), 1.0, "you can go lower: at keep 0.5"),
    (checks_start.check_edge, (slider("2", "2", "7", "2"),), 0.4, "no position of the slider"),
    (checks_start.check_edge, (slider("2", "2", "7", "2"),), ..., "positions is expected"),
    (checks_start.check_worst, (LOSSES,), "count", None),
    (checks_start.check_worst, (LOSSES,), "color", "color lost 5 points; another category lost more"),
    (checks_start.check_worst, (LOSSES,), "word", "word lost 0 points"),
    (checks_start.check_worst, (LOSSES,), 0.2, "one of 'color', 'count', 'word' is expected, got 0.2"),
    (checks_start.check_worst, (LOSSES,), "", "is expected, got ''"),
    (checks_start.check_smallest, (), smallest_norm(lambda norm: -norm), None),
    (checks_start.check_smallest, (), smallest_norm(lambda norm: norm), "these are the largest"),
    (checks_start.check_smallest, (), smallest_norm(lambda norm: -(norm - 1.5).abs()), "must keep 1 and 0.5"),
    (checks_start.check_smallest, (), smallest_norm(lambda norm: -norm.mean(dim=1)), "score must return shape"),
    (checks_start.check_smallest, (), smallest_norm(lambda norm: -norm.nan_to_num()), "nan_survived is broken"),
    (checks_start.check_smallest, (), {}, "registered yet"),
    (checks_redundancy.check_similarity, (), lambda x: normalize(x, dim=1) @ normalize(x, dim=1).T, None),
    (checks_redundancy.check_similarity, (), lambda x: x @ x.T, "divided by its own length"),
    (checks_redundancy.check_similarity, (), lambda x: normalize(x, dim=0) @ normalize(x, dim=0).T, "diagonal is 1"),
    (checks_redundancy.check_similarity, (), lambda x: 1 - normalize(x, dim=1) @ normalize(x, dim=1).T, "not a distance"),
    (checks_redundancy.check_similarity, (), lambda x: (normalize(x, dim=1) @ normalize(x, dim=1).T).abs(), "opposite tokens"),
    (checks_redundancy.check_similarity, (), lambda x: normalize(x, dim=1), "shape must be (4, 4)"),
    (checks_redundancy.check_similarity, (), lambda x: ..., "nothing is returned yet"),
    (checks_redundancy.check_effective_rank, (), lambda x: entropy_of(torch.linalg.svdvals(x)).exp(), None),
    (checks_redundancy.check_effective_rank, (), lambda x: entropy_of(torch.linalg.svdvals(x)), "undoes a logarithm"),
    (checks_redundancy.check_effective_rank, (), lambda x: entropy_of(torch.linalg.svdvals(x) ** 2).exp(), "not their squares"),
    (checks_redundancy.check_effective_rank, (), lambda x: torch.linalg.matrix_rank(x), "weak direction counts less"),
    (checks_redundancy.check_effective_rank, (), lambda x: torch.linalg.svdvals(x).sum(), "multiplying all tokens by 5"),
    (checks_redundancy.check_effective_rank, (), lambda x: ..., "nothing is returned yet"),
    (checks_redundancy.check_most_alike, (PROFILE,), ("llm", 1), None),
    (checks_redundancy.check_most_alike, (PROFILE,), ("encoder", 1), "the other stage has more"),
    (checks_redundancy.check_most_alike, (PROFILE,), ("llm", 0), "another layer has more"),
    (checks_redundancy.check_most_alike, (PROFILE,), ("llm", 7), "layers 0 to 1"),
    (checks_redundancy.check_most_alike, (PROFILE,), "llm", "a pair such as"),
    (checks_redundancy.check_most_alike, (PROFILE,), ..., "a pair such as"),
    (checks_redundancy.check_steady, (), lambda a, b: heavy(a) & heavy(b), None),
    (checks_redundancy.check_steady, (), lambda a, b: heavy(a) | heavy(b), "evidence, not a sink"),
    (checks_redundancy.check_steady, (), lambda a, b: heavy(b), "second question only"),
    (checks_redundancy.check_steady, (), lambda a, b: {i for i in range(40) if a[i] > 2 and b[i] > 2}, "token 9"),
    (checks_redundancy.check_steady, (), lambda a, b: set(), "must be found"),
    (checks_redundancy.check_steady, (), lambda a, b: ..., "nothing is returned yet"),
    (checks_merging.check_recycle, (), recycled, None),
    (checks_merging.check_recycle, (), lambda s, k: recycled(s, k, target=0), "lowest score"),
    (checks_merging.check_recycle, (), lambda s, k: recycled(s, k, sort=False), "order of their places"),
    (checks_merging.check_recycle, (), lambda s, k: recycled(s, k, largest=False), "highest scores are kept"),
    (checks_merging.check_recycle, (), lambda s, k: (*recycled(s, k)[:2], s.argsort(descending=True)[k - 1 :]), "both kept and merged"),
    (checks_merging.check_recycle, (), lambda s, k: ..., "nothing is returned yet"),
    (checks_merging.check_ramp, (), up, None),
    (checks_merging.check_ramp, (), lambda count, reverse: up(count, not reverse), "gives it to the target"),
    (checks_merging.check_ramp, (), lambda count, reverse: torch.arange(1.0, count + 2), "sum to 1"),
    (checks_merging.check_ramp, (), lambda count, reverse: torch.full((count + 1,), 1 / (count + 1)), "plain mean"),
    (checks_merging.check_ramp, (), lambda count, reverse: up(count - 1, reverse), "shape must be (4,)"),
    (checks_merging.check_ramp, (), lambda count, reverse: up(count, False), "opposite order"),
    (checks_merging.check_ramp, (), lambda count, reverse: ..., "nothing is returned yet"),
    (checks_merging.check_pairs, (), best_pairs, None),
    (checks_merging.check_pairs, (), nearest_of_all, "paired with itself"),
    (checks_merging.check_pairs, (), lambda k, r: best_pairs(k, r, unit=False), "use the cosine"),
    (checks_merging.check_pairs, (), lambda k, r: [(b, a) for a, b in best_pairs(k, r)], "even token (first)"),
    (checks_merging.check_pairs, (), lambda k, r: best_pairs(k, r + 1), "asks for 2 pairs"),
    (checks_merging.check_pairs, (), lambda k, r: ..., "nothing is returned yet"),
    (checks_merging.check_provenance, (), lambda first, second: second @ first, None),
    (checks_merging.check_provenance, (), lambda first, second: first @ second, "your code stopped with RuntimeError"),
    (checks_merging.check_provenance, (), lambda first, second: (second @ first).sign(), "each row must sum to 1"),
    (checks_merging.check_provenance, (), lambda first, second: normalize((second @ first).sign(), p=1, dim=1), "0.375"),
    (checks_merging.check_provenance, (), lambda first, second: ..., "nothing is returned yet"),
    (checks_merging.check_dropped, (), dropped(lambda full, tokens, keep: il.TokenMap.keep(full.anchor, tokens.count)), None),
    (checks_merging.check_dropped, (), dropped(lambda full, tokens, keep: full), "still made of 8 tokens"),
    (checks_merging.check_dropped, (), dropped(lambda full, tokens, keep: il.TokenMap.keep(full.anchor[:, 1:], tokens.count)), "the target stays too"),
    (checks_merging.check_dropped, (), dropped(lambda full, tokens, keep: il.TokenMap.keep((full.anchor + 1) % 12, tokens.count)), "iLLaVA keeps tokens"),
    (checks_merging.check_dropped, (), dropped(lambda full, tokens, keep: il.TokenMap(full.anchor, tokens.count, full.self_weight)), "share of the ramp"),
    (checks_merging.check_dropped, (), {}, "registered yet"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "more", "answer", "fault"), ANSWERS, ids=[f"{row[0].__name__}-{i}" for i, row in enumerate(ANSWERS)]
)
def test_checks_name_the_fault(check, more: tuple, answer, fault: str | None) -> None:
    says_what_is_wrong(check(answer, *more), fault)


def test_every_check_was_tried_with_three_wrong_answers_and_an_empty_one() -> None:
    each_was_tried(ANSWERS, checks_start, checks_redundancy, checks_merging)
