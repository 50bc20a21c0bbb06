"""Test HumanEval's programs: build the tests, run responses in the sandbox, compute pass@k."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from tithe.engine.host import cpu_cores
from tithe.errors import DataError
from tithe.lab.evaluate.sandbox import OUT_OF_TIME, Limits, ProgramOutcome, run_program

LAST_CALL = re.compile(r"\n *check\((\w+)\)\s*\Z")
# EvalPlus's rule: results must be equal, or close if they are floats. `find_zero` may return any zero, so there the
# polynomial's value at the result is compared with 0.
PLUS = """
def _plus_floats(value):
    if isinstance(value, float):
        return True
    return isinstance(value, (list, tuple)) and all(isinstance(one, float) for one in value)


def _plus_near(got, wanted, tolerance):
    if isinstance(wanted, (list, tuple)):
        return len(got) == len(wanted) and all(_plus_near(a, b, tolerance) for a, b in zip(got, wanted))
    return got == wanted or abs(got - wanted) <= tolerance + 1e-07 * abs(wanted)


def check(candidate):
    import copy

    own = {{}}
    exec({reference!r}, own)
    for inputs in {inputs!r}:
        got = candidate(*copy.deepcopy(inputs))
        if {name!r} == "find_zero":
            assert abs(own["poly"](*copy.deepcopy(inputs), got)) <= {tolerance!r}
            continue
        wanted = own[{name!r}](*copy.deepcopy(inputs))
        tolerance = 1e-06 if {tolerance!r} == 0 and _plus_floats(wanted) else {tolerance!r}
        if not (got == wanted):
            assert tolerance != 0 and type(got) is type(wanted) and _plus_near(got, wanted, tolerance)
"""


def split_tests(test: str, where: str) -> tuple[str, str]:
    """Split HumanEval's tests into the tests and the name of the function that their last line calls.

    Raises:
        DataError: they do not end in such a call.
    """
    found = LAST_CALL.search(test)
    if found is None:
        raise DataError(
            f"{where}: the record has no field `entry_point`", hint="add it, or end the tests in a call of `check`"
        )
    return test[: found.start()], found[1]


def plus_tests(reference: str, name: str, inputs: Sequence[Any], tolerance: float) -> str:
    """Return tests that compare with a reference solution on all inputs, as EvalPlus does."""
    return PLUS.format(reference=reference, name=name, inputs=list(inputs), tolerance=tolerance)


def pass_at_k(n: int, passed: int, k: int) -> float:
    """Estimate without bias the probability that at least one of k responses passes, from n of which c `passed`.

    1 - C(n - c, k) / C(n, k), Chen et al. 2021, arXiv 2107.03374, equation 1.
    """
    assert 0 <= passed <= n and 1 <= k <= n
    return 1 - math.comb(n - passed, k) / math.comb(n, k)


@dataclass
class Grader:
    """Run responses in the sandbox and count the outcomes.

    Args:
        fenced: whether a response ends at its first fence of three backticks.
        limits: resource limits of each program.
        confined: what confined the programs.
        reasons: outcome -> number of programs.
    """

    fenced: bool = False
    limits: Limits = field(default_factory=Limits)
    confined: dict[str, str] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)

    def grade(self, responses: Sequence[Sequence[str]], docs: Sequence[Mapping[str, Any]]) -> list[list[bool]]:
        """Return for each document whether each of its responses passes; a filter function of lm-eval."""
        jobs = [(doc, text) for texts, doc in zip(responses, docs, strict=True) for text in texts]
        with ThreadPoolExecutor(cpu_cores()) as pool:  # threads, as the work is done by other processes
            outcomes = iter([*pool.map(lambda job: self.run(*job), jobs)])
        graded = [[next(outcomes) for _ in texts] for texts in responses]
        for one in (one for row in graded for one in row):
            self.confined |= one.confined
            self.reasons["passed" if one.passed else one.reason.partition(":")[0] or "failed"] += 1
        return [[one.passed for one in row] for row in graded]

    def run(self, doc: Mapping[str, Any], text: str) -> ProgramOutcome:
        """Test one response; the program is the prompt, which begins it, and the response."""
        text = text.partition("```")[0] if self.fenced else text
        prompt, name = doc["prompt"], doc["entry_point"]
        tests = f"{doc['test']}\ncheck({name})"
        return run_program(prompt + text, tests, self.limits, given=prompt, entry_point=name)

    @property
    def stopped(self) -> int:
        """Return how many programs ran out of time."""
        return sum(n for reason, n in self.reasons.items() if reason.startswith(OUT_OF_TIME))

    def about(self) -> dict[str, Any]:
        """Return what the record says of running the programs."""
        return {"confined": self.confined, "limits": asdict(self.limits), "outcomes": dict(self.reasons.most_common())}


def passed_at(references: Sequence[str], predictions: Sequence[Sequence[bool]], k: Sequence[int]) -> dict[str, float]:
    """Return pass@k of one document's graded responses; a metric function of lm-eval."""
    (graded,) = predictions
    return {f"pass@{one}": pass_at_k(len(graded), sum(graded), one) for one in k if one <= len(graded)}
