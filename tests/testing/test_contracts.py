"""The contract notices every fault that it promises to notice: each is planted once."""

import itertools
import random
import sys
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest

from tests.scorers.bench import spec_of
from tithe import plugins
from tithe.errors import SettingsError
from tithe.records import Ask, Example, Message, Nll, PassSpec, Problem, Selection
from tithe.scorers.base import Scorer
from tithe.selectors.base import Selector
from tithe.selectors.budget import Budget
from tithe.selectors.rank import Top
from tithe.testing import check_scorer, check_selector

# --- selectors


@dataclass(frozen=True)
class Good(Selector):
    """Keeps the best."""

    name: ClassVar[str] = "good"

    def select(self, scores, budget):
        return self.settle(scores, budget.take(scores, Top().order(scores)), "below the budget")


def plant(fault):
    """A fault as its author would write it: a frozen dataclass, where the class is not one yet."""
    return fault if "__dataclass_params__" in vars(fault) else dataclass(frozen=True)(fault)


def swap(selection, **changes):
    """A selection that its own checks did not see."""
    return replace(selection, **changes)


class Loses(Good):
    """Forgets one."""

    def select(self, scores, budget):
        good = super().select(scores, budget)
        return swap(good, dropped=dict(list(good.dropped.items())[1:]))


class Invents(Good):
    """Adds one."""

    def select(self, scores, budget):
        good = super().select(scores, budget)
        return swap(good, kept=[*good.kept, "nobody"])


class Unordered(Good):
    """Gives the best first."""

    def select(self, scores, budget):
        good = super().select(scores, budget)
        return swap(good, kept=list(good.kept)[::-1])


class UnorderedDropped(Good):
    """Gives the dropped in another order."""

    def select(self, scores, budget):
        good = super().select(scores, budget)
        return swap(good, dropped=dict(reversed(good.dropped.items())))


class Twice(Good):
    """Keeps one twice."""

    def select(self, scores, budget):
        good = super().select(scores, budget)
        return swap(good, kept=[*good.kept[:1], *good.kept])


class Greedy(Good):
    """Keeps one more."""

    def select(self, scores, budget):
        taken = budget.take(scores, Top().order(scores))
        return self.settle(scores, Top().order(scores)[: len(taken) + 1], "below the budget")


class Everything(Good):
    """Reads a share of nothing as no limit, as `[-0:]` does."""

    def select(self, scores, budget):
        rows = int(len(scores) * budget.amount) if budget.unit == "share" else None
        return self.settle(scores, Top().order(scores)[-rows:], "") if rows == 0 else super().select(scores, budget)


class KeepsNaN(Good):
    """Sorts NaN to the front."""

    def select(self, scores, budget):
        return self.settle(scores, budget.take(scores, np.argsort(-scores.values)[::-1]), "below the budget")


class ForgetsProblems(Good):
    """Gives one reason to all."""

    def select(self, scores, budget):
        good = super().select(scores, budget)
        return swap(good, dropped=dict.fromkeys(good.dropped, "below the budget"))


class Chatty(Good):
    """Writes the score into the reason."""

    def select(self, scores, budget):
        order = budget.take(scores, Top().order(scores))
        because = {i: f"score {value:.3f}" for i, value in enumerate(scores.values)}
        return self.settle(scores, order, "", because)


class Silent(Good):
    """Gives an empty reason."""

    def select(self, scores, budget):
        return self.settle(scores, budget.take(scores, Top().order(scores)), " ")


class Global(Good):
    """Draws from the global state."""

    def select(self, scores, budget):
        order = Top().order(scores)
        return self.settle(scores, budget.take(scores, order[np.random.permutation(len(order))]), "not drawn")  # noqa: NPY002


class Luck(Good):
    """Draws from Python's global state."""

    def select(self, scores, budget):
        order = Top().order(scores).tolist()
        random.shuffle(order)
        return self.settle(scores, budget.take(scores, np.array(order, dtype=np.intp)), "not drawn")


class ByPosition(Good):
    """Keeps the first of the file."""

    def select(self, scores, budget):
        return self.settle(scores, budget.take(scores, np.sort(Top().order(scores))), "below the budget")


class Writes(Good):
    """Fills the holes in place."""

    def select(self, scores, budget):
        good = super().select(scores, budget)
        scores.values[:] = np.nan_to_num(scores.values)
        return good


class WritesColumns(Good):
    """Changes a column in place."""

    def select(self, scores, budget):
        good = super().select(scores, budget)
        scores.columns["response_tokens"][:] = 0
        return good


class Fails(Good):
    """Takes the maximum of nothing."""

    def select(self, scores, budget):
        scores.values[~np.isnan(scores.values)].max()
        return super().select(scores, budget)


class Tuple(Good):
    """Returns something else."""

    def select(self, scores, budget):
        return list(super().select(scores, budget).kept)


class NoRefusal(Good):
    """Keeps nothing where the budget cannot be met."""

    def select(self, scores, budget):
        try:
            return super().select(scores, budget)
        except Exception:
            return self.settle(scores, [], "below the budget")


@dataclass(frozen=True)
class Stateful(Good):
    """Remembers how often it was called."""

    calls: list = field(default_factory=list, compare=False)

    def select(self, scores, budget):
        self.calls.append(1)
        order = Top().order(scores)
        return self.settle(scores, budget.take(scores, np.roll(order, len(self.calls))), "below the budget")


FAULTS = [
    (Loses, "neither kept nor dropped"),
    (Invents, "ids are not of the input, e.g. `nobody`"),
    (Unordered, "`kept` is not in input order"),
    (UnorderedDropped, "`dropped` is not in input order"),
    (Twice, "kept twice"),
    (Greedy, "keeps 2 rows of 1"),
    (Everything, "1 % of 10 examples comes to no row, which must raise SettingsError"),
    (KeepsNaN, "keeps an example that has no score"),
    (ForgetsProblems, "is dropped for `below the budget`, not `no"),
    (Chatty, "different reasons cannot be counted"),
    (Silent, "' ' is no reason"),
    (Global, "two calls differ"),
    (Luck, "two calls differ"),
    (ByPosition, "shuffling the input changes"),
    (Writes, "changed the scores"),
    (WritesColumns, "changed the scores"),
    (Fails, "20 examples without any score .* raised ValueError"),
    (Tuple, "returns list, not a `Selection`"),
    (NoRefusal, "must raise SettingsError"),
    (Stateful, "two calls differ"),
]


def test_a_good_selector_passes():
    check_selector(Good())


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_faulty_selector_is_noticed(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_selector(plant(fault)())


def test_overspending_tokens_is_noticed():
    @dataclass(frozen=True)
    class Spends(Good):
        """Keeps the one that does not fit."""

        def select(self, scores, budget):
            if budget.unit == "tokens" and "response_tokens" in scores.columns:
                taken = len(budget.take(scores, Top().order(scores))) + 1
                return self.settle(scores, Top().order(scores)[:taken], "below the budget")
            return super().select(scores, budget)

    with pytest.raises(AssertionError, match="response tokens of 100"):
        check_selector(Spends())


def test_a_selector_that_is_not_its_settings_is_noticed():
    class Undecorated(Good):
        """Is no dataclass of its own."""

    class Nameless(Selector):
        """Has no name."""

        select = Good.select

    @dataclass(frozen=True)
    class Undocumented(Good):
        name: ClassVar[str] = "undocumented"

    with pytest.raises(AssertionError, match="is not a dataclass"):
        check_selector(Undecorated())
    with pytest.raises(AssertionError, match=r"needs a class attribute `name: ClassVar\[str\]`"):
        check_selector(dataclass(frozen=True)(Nameless)())
    with pytest.raises(AssertionError, match="has no docstring"):
        check_selector(Undocumented())


def test_a_selectors_own_column_can_be_given():
    @dataclass(frozen=True)
    class Reads(Good):
        """Needs a column."""

        def select(self, scores, budget):
            assert len(scores.columns["topic"]) == len(scores)
            return super().select(scores, budget)

    with pytest.raises(AssertionError, match="KeyError: 'topic'"):
        check_selector(Reads())
    check_selector(Reads(), columns={"topic": lambda n: np.arange(n) % 3})


@dataclass(frozen=True)
class Alike(Good):
    """Looks at vectors."""

    encoder: str = "self"

    def select(self, scores, budget):
        if scores.vectors is None:
            raise SettingsError("there are no vectors")
        assert scores.vectors.shape == (len(scores), 16)
        return super().select(scores, budget)


@dataclass(frozen=True)
class Grouped(Good):
    """Looks at prompts."""

    reads: ClassVar[tuple[str, ...]] = ("prompt",)

    def select(self, scores, budget):
        if "prompt" not in scores.columns:
            raise SettingsError("there is no column `prompt`")
        return super().select(scores, budget)


class WritesVectors(Alike):
    """Normalises in place."""

    def select(self, scores, budget):
        scores.vectors[:] = 1
        return super().select(scores, budget)


class DoesWithout(Alike):
    """Takes the ranking where there are no vectors."""

    def select(self, scores, budget):
        return Good.select(self, scores, budget)


class DoesWithoutPrompts(Grouped):
    """Takes the ranking where there are no prompts."""

    def select(self, scores, budget):
        return Good.select(self, scores, budget)


class DividesByDistance(Alike):
    """Cannot bear vectors that are equal."""

    def select(self, scores, budget):
        distinct = len(np.unique(scores.vectors, axis=0))
        assert distinct == len(scores), "two are equal"
        return super().select(scores, budget)


class ReadsText(Good):
    """Says one name."""

    reads = "prompt"


def test_selectors_that_look_at_vectors_and_prompts_pass():
    check_selector(Alike())
    check_selector(Grouped())


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (WritesVectors, "changed the scores"),
        (DoesWithout, "there are no vectors, which must raise SettingsError"),
        (DoesWithoutPrompts, "there is no column `prompt`, which must raise SettingsError"),
        (DividesByDistance, "40 examples with equal vectors .* two are equal"),
        (ReadsText, "`reads` is a tuple of column names, not 'prompt'"),
    ],
)
def test_a_fault_with_vectors_or_prompts_is_noticed(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_selector(plant(fault)())


def test_an_encoder_that_is_no_text_is_noticed():
    with pytest.raises(AssertionError, match="`encoder` is text, not None"):
        check_selector(Alike(encoder=None))


# --- scorers


def given(example: Example) -> PassSpec:
    return PassSpec("given", example)


@dataclass(frozen=True)
class Ratio(Scorer):
    """High: the prompt helps little.

    Paper:    nobody 2024
    Formula:  s(A|Q) / s(A)
    Range:    0 to infinity, ratio
    """

    name: ClassVar[str] = "ratio"
    unit: ClassVar[str] = "ratio"
    reads: ClassVar[str] = "given and alone"

    def asks(self, example):
        return {"given": Ask(given(example), "nll"), "alone": Ask(PassSpec("alone", example), "nll")}

    def score(self, example, answers):
        if not answers["given"].tokens or not answers["alone"].tokens:
            return Problem("no response token left")
        if answers["alone"].mean == 0:
            return Problem("the response alone has no surprise")
        return float(answers["given"].mean / answers["alone"].mean)


class Divides(Ratio):
    """Divides by zero."""

    def score(self, example, answers):
        return answers["given"].total / answers["alone"].total


class GivesNaN(Ratio):
    """Returns NaN."""

    def score(self, example, answers):
        got = super().score(example, answers)
        return float("nan") if isinstance(got, Problem) else got


class GivesInfinity(Ratio):
    """Returns infinity."""

    def score(self, example, answers):
        got = super().score(example, answers)
        return float("inf") if isinstance(got, Problem) else got


class Sentinel(Ratio):
    """Scores an empty response 0."""

    def score(self, example, answers):
        got = super().score(example, answers)
        return 0.0 if isinstance(got, Problem) else got


class Int(Ratio):
    """Returns an int."""

    def score(self, example, answers):
        return int(answers["given"].tokens) or Problem("empty")


class Numpy32(Ratio):
    """Returns a numpy float32."""

    def score(self, example, answers):
        got = super().score(example, answers)
        return got if isinstance(got, Problem) else np.float32(got)


class Unexplained(Ratio):
    """Gives no reason."""

    def score(self, example, answers):
        got = super().score(example, answers)
        return Problem("") if isinstance(got, Problem) else got


class Dice(Ratio):
    """Draws."""

    def score(self, example, answers):
        return random.random()


class Row(Ratio):
    """Reads the row."""

    def score(self, example, answers):
        return float(example.row)


class Clears(Ratio):
    """Empties the answers."""

    def score(self, example, answers):
        got = super().score(example, answers)
        answers.clear()
        return got


class Scales(Ratio):
    """Changes token values in place."""

    def asks(self, example):
        return {"given": Ask(given(example), "nll_tokens")}

    def score(self, example, answers):
        answers["given"].per_token[:] *= 2
        return float(answers["given"].total)


class OtherExample(Ratio):
    """Asks about somebody else."""

    def asks(self, example):
        other = Example("x", 0, 0, (), Message("assistant", "x"))
        return {"given": Ask(given(other), "nll")}


class UnknownReadout(Ratio):
    """Asks for something nobody knows."""

    def asks(self, example):
        return {"given": Ask(given(example), "hidden")}


class AsksList(Ratio):
    """Asks with a list."""

    def asks(self, example):
        return [Ask(given(example), "nll")]


class AsksText(Ratio):
    """Asks with names only."""

    def asks(self, example):
        return {"given": "nll"}


CALLS = itertools.count()


class AsksByLuck(Ratio):
    """Asks now this, now that."""

    def asks(self, example):
        return {"given": Ask(given(example), ("nll", "count")[next(CALLS) % 2])}


class MutatesExample(Ratio):
    """Writes into the example's columns."""

    def asks(self, example):
        example.columns["seen"] = True
        return super().asks(example)


@dataclass(frozen=True)
class Counts(Ratio):
    """Counts its calls."""

    calls: list = field(default_factory=list, compare=False)

    def score(self, example, answers):
        self.calls.append(1)
        return float(len(self.calls))


@dataclass(frozen=True)
class Remembers(Ratio):
    """Compares with the example before, which no repeated call of one example shows."""

    seen: list = field(default_factory=lambda: ["", ""], compare=False)

    def score(self, example, answers):
        if not answers["given"].tokens:
            return Problem("no response token left")
        if self.seen[1] != example.id:
            self.seen[:] = [self.seen[1], example.id]
        return float(self.seen[0] < example.id)


class NoUnit(Ratio):
    """Has no unit."""

    unit: ClassVar[str] = ""


class NoSentence(Ratio):
    """High"""


class NoFormula(Ratio):
    """High: hard.

    Paper:  nobody 2024
    Range:  0 to 1
    """


SCORER_FAULTS = [
    (Divides, "raises ZeroDivisionError"),
    (GivesNaN, "is nan; what cannot be scored is a `Problem`"),
    (GivesInfinity, "is inf; what cannot be scored"),
    (Sentinel, "without a scored token is 0.0, not a `Problem`"),
    (Int, "is int 1, not a float"),
    (Numpy32, "is float32 .* not a float"),
    (Unexplained, "a `Problem` without a reason"),
    (Dice, "for a second call"),
    (Row, "for the same example in another row"),
    (Clears, "changes what it was given"),
    (Scales, "changes what it was given"),
    (OtherExample, "is about another example"),
    (UnknownReadout, "unknown readout `hidden`; say how to make up"),
    (AsksList, "returns list, not a dict"),
    (AsksText, "'given': str, not `Ask`"),
    (AsksByLuck, "differs when it is called twice"),
    (MutatesExample, "changes the example"),
    (Counts, "for a second call"),
    (Remembers, "which examples were scored before"),
    (NoUnit, "needs a class attribute `unit"),
    (NoSentence, "does not open with a sentence"),
    (NoFormula, "names a paper but has no `Formula:` section"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", plugins.names(plugins.SCORERS))
def test_every_registered_scorer_passes(name):
    check_scorer(plugins.build_scorer(spec_of(name)))


@pytest.mark.slow
def test_a_good_scorer_passes_as_class_and_as_instance():
    check_scorer(Ratio)
    check_scorer(Ratio())


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "message"), SCORER_FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_faulty_scorer_is_noticed(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_scorer(plant(fault))


def test_own_readouts_can_be_fabricated():
    @dataclass(frozen=True)
    class Hidden(Ratio):
        """High: something of its own."""

        def asks(self, example):
            return {"given": Ask(given(example), "hidden")}

        def score(self, example, answers):
            return float(answers["given"].total)

    check_scorer(Hidden, answers={"hidden": lambda tokens, mean, first: Nll(tokens * mean, tokens, mean)})


def test_a_scorer_that_needs_settings_is_given_as_an_instance():
    @dataclass(frozen=True)
    class Needs(Ratio):
        """High: as its shots say."""

        shots: str

    with pytest.raises(AssertionError, match="give `check_scorer` an instance"):
        check_scorer(Needs)
    check_scorer(Needs("x"))


def test_another_class_is_no_scorer():
    with pytest.raises(AssertionError, match="not derived from"):
        check_scorer(Good)


HEAVY = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
{imports}
from {module} import Ratio

@dataclass(frozen=True)
class Heavy(Ratio):
    """High: costs much."""

    path: str = ""

    def __post_init__(self):
        {body}
'''


@pytest.mark.parametrize(
    ("imports", "body", "message"),
    [
        ("import pandas", "pass", "loads pandas"),
        ("", "import pandas", "loads pandas"),
        ("", "Path(__file__).with_suffix('.txt').read_text()", r"making it opens .*heavy_scorer.txt"),
        ("", "pass", None),
    ],
)
def test_a_constructor_that_loads_something_is_noticed(tmp_path, monkeypatch, imports, body, message):
    (tmp_path / "heavy_scorer.py").write_text(HEAVY.format(module=Ratio.__module__, imports=imports, body=body))
    (tmp_path / "heavy_scorer.txt").write_text("weights")
    (tmp_path / "pandas.py").write_text("")  # a stand-in, so that the test needs no such package
    monkeypatch.syspath_prepend(tmp_path)
    for name in "heavy_scorer", "pandas":
        monkeypatch.setitem(sys.modules, name, None)  # so that it is as before afterwards, there or not
        del sys.modules[name]
    import heavy_scorer

    if message is None:
        return check_scorer(heavy_scorer.Heavy)
    with pytest.raises(AssertionError, match=message):
        check_scorer(heavy_scorer.Heavy)


def test_a_failing_contract_says_selector_pool_and_budget():
    with pytest.raises(AssertionError, match=r"selector `good` on 200 distinct scores with a budget of `1`: "):
        check_selector(plant(Loses)())


def test_the_plants_are_selections_at_all():
    one = Selection(["a"], {"b": "x"})
    assert swap(one, kept=["c"]).kept == ["c"] and Budget.parse(1).amount == 1
