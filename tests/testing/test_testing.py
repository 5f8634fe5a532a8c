"""The conformance checks: shipped strategies keep every promise; each fault is caught by the check that names it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.broken_strategies import BROKEN, Sound

import illava_lab as il
from illava_lab.__main__ import main
from illava_lab.method.ranking import ranking
from illava_lab.method.tokens import STATISTICS
from illava_lab.sites.attention import LLM_STATISTICS
from illava_lab.testing import PROMISES, BrokenPromise, example_tokens, parametrize_with_checks, variants
from illava_lab.testing.subject import Subject

OTHER_CHOICES = [other for cls in il.strategies().values() for other in variants(cls())[1:]]
GOOD = """
import illava_lab as il

@il.register
class LargestNorm(il.Scorer):
    "Keep the visual tokens with the largest norm."
    name = "{name}"
    def score(self, tokens):
        return {sign}tokens.hidden.norm(dim=-1)
"""


# ---------------------------------------------------------------------------------------------- shipped ones
@parametrize_with_checks(["illava", "fastv", "downsample"])
def test(strategy, check):
    check(strategy)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", OTHER_CHOICES, ids=lambda strategy: Subject(strategy).label)
def test_every_choice_of_every_setting(strategy):
    il.check_strategy(strategy)


SUMS = ("visionzip", "prumerge", "prumerge+")
NOTHING = {"statistics_exist", "protected_survive", "keep_one"}


@pytest.mark.parametrize("name", il.strategies())
def test_shipped_strategies_keep_every_promise_and_what_does_not_apply_is_known(name):
    """A check that passes because it was never asked would promise nothing."""
    results = il.check_strategy(name).results
    not_asked = {result.promise for result in results if result.outcome == "not applicable"}
    assert [result.promise for result in results] == list(PROMISES)
    assert not_asked == ({"rows_sum_to_one"} if name in SUMS else set()) or (name == "none" and not_asked <= NOTHING)


# ---------------------------------------------------------------------------------------------- faults
def test_every_promise_has_a_fault_that_breaks_it():
    assert list(BROKEN) == list(PROMISES)
    assert il.check_strategy(Sound).passed


@pytest.mark.slow
@pytest.mark.parametrize("promise", BROKEN)
def test_a_fault_is_caught_by_the_check_that_names_it(promise):
    report = il.check_strategy(BROKEN[promise], raises=False)
    also = {"batch_equals_single"} if promise == "batch_permutes" else set()
    assert {result.promise for result in report.broken} == {promise} | also, report
    assert f"BROKEN  {promise}: " in repr(report) and promise in report._repr_html_()
    with pytest.raises(BrokenPromise, match=promise) as caught:
        il.check_strategy(BROKEN[promise], only=promise)
    assert isinstance(caught.value, il.LabError) and caught.value.report.broken[0].promise == promise


@pytest.mark.parametrize(
    ("promise", "message", "case"),
    [
        ("rows_sum_to_one", "slot 1 sums to 2): divide by", "encoder stage, batch 1, 3 tokens, keep 2, grid 1 x 3"),
        ("sources_exist", "source 31 is out of range: tokens are 0 to 15", "batch 3, 16 tokens, keep 5, grid 4 x 4"),
        ("keep_everything", "begin with if keep == tokens.count", "encoder stage, batch 1, 2 tokens, keep 2"),
        ("keep_one", "ZeroDivisionError", "encoder stage, batch 1, 2 tokens, keep 1, grid 1 x 2"),
        ("protected_survive", "is gone: use `ranking`", "llm stage, batch 2, 4 tokens, 1 of them protected line ends"),
        ("memory_as_declared", "16 times, to 1024 KiB", "512 tokens"),
        ("statistics_exist", "cls_attention needs a CLS token, which this place has not; it has", ""),
        ("settings_validated", "add one_of('mode', self.mode, (...)) to __post_init__", ""),
    ],
)
def test_the_smallest_case_and_how_to_mend_it(promise, message, case):
    (result,) = il.check_strategy(BROKEN[promise], raises=False).broken
    assert message in result.message and case in result.case


class NormFromTheMean(il.Scorer):
    """How far a token is from the mean of all: one NaN makes every score NaN."""

    name = "norm-from-the-mean"

    def score(self, tokens):
        return (tokens.hidden - tokens.hidden.mean(dim=1, keepdim=True)).norm(dim=2)


class WithoutScores(NormFromTheMean):
    """The same, not saying by what it ranked."""

    def map(self, tokens, keep):
        return replace(super().map(tokens, keep), score=None)


class AveragesByScore(NormFromTheMean):
    """The same, and the least is merged with weights made of scores."""

    kind = "merge"

    def map(self, tokens, keep):
        out = super().map(tokens, keep)
        if keep == tokens.count or tokens.room(keep) == 0:
            return out
        order = ranking(out.score, tokens)
        target, source = order[:, keep - 1 : keep], order[:, keep : keep + 1]
        weight = out.score.gather(1, torch.cat([target, source], dim=1)).float().softmax(dim=1)
        slot = (out.anchor < target).sum(dim=1, keepdim=True)
        own = torch.ones(out.anchor.shape).scatter(1, slot, weight[:, :1])
        return il.TokenMap(out.anchor, tokens.count, own, slot, source, weight[:, 1:], out.score)


class ZeroForNaN(NormFromTheMean):
    """The same, with all scores equal where they would be NaN."""

    def score(self, tokens):
        return super().score(tokens).nan_to_num()


@pytest.mark.parametrize("strategy", [NormFromTheMean, WithoutScores, AveragesByScore, ZeroForNaN])
def test_a_method_in_which_one_nan_makes_every_score_nan_is_not_blamed(strategy):
    assert il.check_strategy(strategy).passed


class SortsNaNFirst(il.Scorer):
    """Its own sorting takes NaN for the largest number, and it says by what it ranked."""

    name = "sorts-nan-first"

    def score(self, tokens):
        return tokens.hidden.norm(dim=2)

    def map(self, tokens, keep):
        score = self.score(tokens)
        order = score.masked_fill(tokens.protected, torch.finfo(score.dtype).max).argsort(
            dim=1, descending=True, stable=True
        )
        return il.TokenMap.keep(order[:, :keep].sort(dim=1).values, tokens.count, score)


class ZeroIsTheBest(SortsNaNFirst):
    """Keeps small tokens, and replaces NaN by what is better than any number."""

    def score(self, tokens):
        return (-super().score(tokens)).nan_to_num(0.0)


class HidesItsNaN(SortsNaNFirst):
    """Says that it ranked NaN last."""

    def map(self, tokens, keep):
        out = super().map(tokens, keep)
        return replace(out, score=out.score.nan_to_num(-1.0))


class OneTooFew(NormFromTheMean):
    """No order is no excuse for another count."""

    def map(self, tokens, keep):
        return super().map(tokens, keep - bool(self.score(tokens).isnan().any()))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (SortsNaNFirst, "is kept when it is NaN, and is not when it is a number: sorting puts NaN first"),
        (ZeroIsTheBest, "is kept when it is NaN, and is not when it is a number"),
        (HidesItsNaN, "is kept when it is NaN, and is not when it is a number"),
        (OneTooFew, "with NaN in token 0, 1 slots came out"),
    ],
)
def test_a_method_that_prefers_nan_to_numbers_is_blamed(strategy, message):
    (result,) = il.check_strategy(strategy, raises=False).broken
    assert result.promise == "nan_survived" and message in result.message


def test_what_raises_everywhere_is_reported_once():
    class Unfinished(il.Strategy):
        """Nothing yet."""

        name = "unfinished"

    report = il.check_strategy(Unfinished, raises=False)
    assert [result.promise for result in report.broken] == ["maps_every_case"]
    assert "must define map(self, tokens, keep)" in report.broken[0].message


class CountsTheBatch(Sound):
    """A picture keeps more in company."""

    own_count = True
    more = 0

    def count(self, tokens: il.Tokens, keep: float | int) -> torch.Tensor:
        own = min(tokens.count, tokens.protected_count + tokens.batch)
        return torch.full((tokens.batch,), own + self.more * tokens.count)


class CountsTooFar(CountsTheBatch):
    """More than there are."""

    more = 1


@pytest.mark.parametrize(
    ("strategy", "says"),
    [(CountsTheBatch, "and alone .1, 1, 1.: do not mix rows"), (CountsTooFar, "count must be from")],
)
def test_counts_that_pictures_decide_are_those_of_each_alone(strategy, says):
    (broken,) = il.check_strategy(strategy, raises=False).broken
    assert broken.promise == "batch_equals_single" and re.search(says, broken.message)


# ---------------------------------------------------------------------------------------------- example tokens
@pytest.mark.parametrize("cls", [True, False])
def test_example_tokens_have_what_the_encoder_has(cls):
    tokens = example_tokens("encoder", 6, 2, cls=cls)
    assert tokens.hidden.shape[:2] == (2, 6 + cls) and tokens.protected.sum() == 2 * cls and tokens.grid == (2, 3)
    for name in STATISTICS:
        if name in LLM_STATISTICS or name == "noted" or ("cls" in name and not cls):
            refusal = r"which this place has not|which the image encoder does not see|nothing was noted here"
            with pytest.raises(il.LabError, match=refusal):
                getattr(tokens, name)
        else:
            assert getattr(tokens, name).shape[:2] == (2, 6 + cls)
    torch.testing.assert_close(tokens.attention_received.sum(dim=1), torch.ones(2))


def test_example_tokens_have_what_the_llm_has():
    tokens = example_tokens("llm", 6, 3, newlines=2)
    assert tokens.protected.sum(dim=1).tolist() == [2, 2, 2] and tokens.protected_count == 2
    assert (tokens.protected[0] != tokens.protected[1]).any()
    assert ((tokens.position == -1) == tokens.protected).all()
    torch.testing.assert_close(tokens.text_rows[:, -1], tokens.text_attention)
    assert all(len(getattr(tokens, name)) == 3 for name in LLM_STATISTICS)
    first = example_tokens("llm", 6, entry=True)
    assert first.layer == 0 and first.text_embeddings.shape == (2, 3, 8)
    with pytest.raises(il.LabError, match="text_attention needs attention of the layer before, and here is none"):
        _ = first.text_attention
    assert example_tokens("llm", 6, reduced=True).embeddings.shape[1] == 12
    with pytest.raises(il.LabError, match="cls_attention needs a CLS token"):
        _ = tokens.cls_attention
    with pytest.raises(il.LabError, match="keep must be at least 2, the number of protected tokens, got 1"):
        il.get_strategy("stride")().map(tokens, 1)


# ---------------------------------------------------------------------------------------------- names and files
@pytest.mark.slow
def test_a_file_is_loaded_again_and_again(tmp_path: Path):
    file = tmp_path / "random.py"  # the name of a module of Python
    for sign in ("", "-", "+"):  # the last two have the same size, perhaps within the same second
        file.write_text(GOOD.format(name="mine", sign=sign))
        assert il.check_strategy(str(file)).passed and il.check_strategy("mine").passed
        tokens = example_tokens("encoder", 6, cls=False)
        largest = int(il.get_strategy("mine")().map(tokens, 1).anchor[0]) == int(tokens.hidden[0].norm(dim=1).argmax())
        assert largest == (sign != "-")


def test_a_file_of_the_lab_replaces_itself():
    before = il.get_strategy("fastv")
    file = Path(il.__file__).parent.parent / "strategies" / "fastv.py"
    assert il.check_strategy(file).passed
    assert il.get_strategy("fastv") is not before and il.get_strategy("fastv").__module__ == before.__module__


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD.format(name="half", sign="") + "1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def f(:\n", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import illava_lab", "it registers no strategy; put @il.register above the class"),
        (GOOD.format(name="fastv", sign=""), "the name 'fastv' is taken by illava_lab.strategies.fastv.FastV"),
    ],
)
def test_a_file_that_fails_leaves_nothing_behind(tmp_path, text, reason, capsys):
    file = tmp_path / "mine.py"
    file.write_text(text)
    before = il.strategies()
    with pytest.raises(il.LabError, match=r"'.*mine.py' could not be loaded: ") as caught:
        il.check_strategy(file)
    assert reason in str(caught.value) and il.strategies() == before
    assert main(["check", str(file)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and reason in err


def test_settings_without_a_default_are_named():
    class Needs(Sound):
        """Cannot be made from its name alone."""

        power: float

    with pytest.raises(il.LabError, match=r"'power'.*give every setting a default"):
        il.check_strategy(Needs)


# ---------------------------------------------------------------------------------------------- command line
def test_the_command_line_says_yes(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(GOOD.format(name="mine", sign=""))
    assert main(["check", "fastv", str(file)]) == 0
    assert capsys.readouterr().out == f"fastv: {len(PROMISES)} passed\nmine: {len(PROMISES)} passed\n"
    assert main(["check", "fastv"]) == 0
    assert [line.split(":")[0].split()[-1] for line in capsys.readouterr().out.splitlines()[1:]] == list(PROMISES)


def test_the_command_line_says_no(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(GOOD.format(name="mine", sign="").replace(".norm(dim=-1)", ".sub_(1).norm(dim=-1)"))
    assert main(["check", "fastv", str(file)]) == 1
    out = capsys.readouterr().out
    assert out.count("BROKEN") == 1 and "inputs_unchanged: map changes tokens.hidden" in out


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("fastvv", "unknown strategy 'fastvv'; did you mean fastv or"),
        ("no/such.py", "there is no Python file 'no/such.py'"),
        ("strategies/", "there is no Python file 'strategies/'"),
    ],
)
def test_the_command_line_refuses(word, line, capsys):
    assert main(["check", "fastv", word]) == 2
    out, err = capsys.readouterr()
    assert out == "" and line in err and err.count("\n") == 1
