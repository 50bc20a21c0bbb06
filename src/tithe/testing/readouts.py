"""Check that a readout keeps to the contract."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.engine.readouts.base import Readout, View
from tithe.records import Answer, Pass, Problem
from tithe.testing.fake_bench import MEANS, TOKENS
from tithe.testing.settings import expect

if TYPE_CHECKING:
    from tithe.engine.forward.states import StateReadout

COUNT, WIDTH, VOCABULARY = 4, 8, 23  # number of hidden states, their width, and token ids of the made-up model
LENGTHS = ((3, 5), (0, 4), (7, 1), (2, 9))  # tokens before the response, and in it


def check_readout(readout: Readout | type[Readout], *, argument: str = "", passes: Sequence[Pass] = ()) -> None:
    """Assert that a readout keeps to the contract, on made-up likelihoods and hidden states, without a model.

    Args:
        readout: an instance, or a class that can be created without arguments.
        argument: what follows the colon of its name when a scorer asks for it.
        passes: what to read, if the readout handles only certain passes; at least two, of different lengths.

    Raises:
        AssertionError: with the rule that was broken.
    """
    one = readout() if isinstance(readout, type) else readout
    title = f"readout `{getattr(one, 'name', type(one).__qualname__)}`"
    _check_names(one, title)
    kind = _check_made_up(one, argument, title)
    json.dumps(one.describe(), default=_not_plain(title))
    if not one.needs_model:  # such as `count`: nothing is read or stored
        return
    _check_schema(one, title)
    given = list(passes) or [_pass(i, *lengths) for i, lengths in enumerate(LENGTHS)]
    rows = _rows(one, given, title)
    for pass_, row in zip(given, rows, strict=True):
        if isinstance(row, Problem):
            expect(bool(row.reason.strip()), f"{title}: read() gives a `Problem` without a reason")
            continue
        expect(isinstance(row, Mapping), f"{title}: read() returns {type(row).__name__}, not a row or a `Problem`")
        missing = f"{title}: read() gives {sorted(row)}, and `fields` are {sorted(one.fields)}"
        expect(set(row) == set(one.fields), missing)
        answer = one.answer(row)
        kinds = f"answer() gives {type(answer).__name__}, made_up() {kind.__name__}"
        expect(type(answer) is kind, f"{title}: {kinds}: a plan would see another kind than a run")
        _check_batched(one, pass_, answer, title)
    _check_stored(one, given, rows, title)


def _check_names(one: Readout, title: str) -> None:
    name = getattr(one, "name", "")
    usable = isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) is not None
    expect(usable, f"{title}: `name` is part of a folder's name: letters, digits, `-`, `_` and `.`")
    version = getattr(one, "version", None)
    expect(type(version) is int and version > 0, f"{title}: `version` is a whole number from 1 on, not {version!r}")


def _check_made_up(one: Readout, argument: str, title: str) -> type[Answer]:
    kinds = set()
    for tokens in TOKENS:
        for mean in MEANS:
            for first in (True, False):
                try:
                    kinds.add(type(one.made_up(argument, tokens, mean, first)))
                except Exception as error:
                    raise AssertionError(f"{title}: made_up() raises {type(error).__name__}: {error}") from error
    expect(len(kinds) == 1, f"{title}: made_up() gives answers of {len(kinds)} kinds")
    return kinds.pop()


def _check_schema(one: Readout, title: str) -> None:
    try:
        one.schema()
    except Exception as error:
        raise AssertionError(f"{title}: `fields` make no schema: {type(error).__name__}: {error}") from error


def _pass(seed: int, before: int, response: int) -> Pass:
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, before + response)
    return Pass(ids.astype(np.int32), before)


def _likelihoods(pass_: Pass) -> Any:
    """Draw likelihoods by the ids: (scored,) float32."""
    scored = len(pass_.ids) - max(pass_.start, 1)
    return np.random.default_rng(pass_.ids.sum()).exponential(2.0, scored).astype(np.float32)


def _rows(one: Readout, passes: Sequence[Pass], title: str) -> list[Mapping[str, Any] | Problem]:
    """Read passes in one batch, and return their rows as they would be stored."""
    from tithe.engine.forward.states import StateReadout

    found = _states_read(one, passes, title) if isinstance(one, StateReadout) else [None] * len(passes)
    views = [View(pass_, _likelihoods(pass_), had) for pass_, had in zip(passes, found, strict=True)]
    return [one.read(view) for view in views]


def _states_read(one: StateReadout, passes: Sequence[Pass], title: str) -> Sequence[Any]:
    """Return what the readout reads from hidden states that are drawn by the ids."""
    import torch

    from tithe.engine.forward.states import ReaderContext

    spans, layers = [one.span(pass_) for pass_ in passes], list(one.layers(COUNT))
    for pass_, span in zip(passes, spans, strict=True):
        inside = 0 <= span.start < span.stop <= len(pass_.ids) and span.step == 1
        expect(inside, f"{title}: span() gives {span} of {len(pass_.ids)} tokens")
    known = layers == sorted(set(layers)) and set(layers) <= set(range(COUNT)) and bool(layers)
    expect(known, f"{title}: layers({COUNT}) gives {layers}; they ascend from 0 to {COUNT - 1}")
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False).requires_grad_(requires_grad=False)
    head.weight.copy_(_drawn(99, VOCABULARY))  # (vocabulary, dim), the same for every call
    output: Any = _Head(head)
    reader = one.reader(passes, ReaderContext(COUNT, torch.device("cpu"), output))
    for layer in layers:
        states = [_drawn(int(pass_.ids.sum()) + layer, len(pass_.ids)) for pass_ in passes]  # (tokens, dim) each
        rows = [one[span.start : span.stop] for one, span in zip(states, spans, strict=True)]
        reader.take(layer, torch.cat(rows))
    results = reader.results()()
    expect(len(results) == len(passes), f"{title}: its reader gives {len(results)} results of {len(passes)} passes")
    return results


class _Head:
    def __init__(self, linear: Any) -> None:
        self.linear = linear

    def logits(self, hidden: Any) -> Any:
        return self.linear(hidden)


def _drawn(seed: int, rows: int) -> Any:
    import torch

    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def _check_batched(one: Readout, pass_: Pass, answer: Answer, title: str) -> None:
    """Assert that the rest of the batch never changes an answer beyond rounding."""
    (row,) = _rows(one, [pass_], title)
    expect(not isinstance(row, Problem), f"{title}: a pass has an answer in a batch, but not by itself")
    assert not isinstance(row, Problem)
    single = one.answer(row)
    expect(_near(single, answer), f"{title}: a pass is answered {answer} in a batch and {single} by itself")


def _check_stored(
    one: Readout, passes: Sequence[Pass], rows: Sequence[Mapping[str, Any] | Problem], title: str
) -> None:
    """Assert that a stored answer comes back unchanged."""
    from tithe.engine.store.store import Store

    there = {pass_.key: row for pass_, row in zip(passes, rows, strict=True) if not isinstance(row, Problem)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            store = Store(Path(folder), one, "contract")
            store.put(there.items())
            store.flush()
            found = Store(Path(folder), one, "contract").get(list(there))
        except Exception as error:
            raise AssertionError(f"{title}: a row cannot be stored: {type(error).__name__}: {error}") from error
    for key, row in there.items():
        before = one.answer(row)
        same = key in found and _near(found[key], before, 0.0)
        expect(same, f"{title}: stored {before}, got back {found.get(key)}")


def _near(one: Any, other: Any, tolerance: float = 1e-5) -> bool:
    """Compare two answers field by field."""
    names = getattr(type(one), "__dataclass_fields__", {})
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return type(one) is type(other) and all(_same(a, b, tolerance) for a, b in pairs)


def _same(a: Any, b: Any, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    return left.shape == right.shape and np.allclose(left, right, rtol=tolerance, atol=tolerance, equal_nan=True)


def _not_plain(title: str) -> Callable[[Any], Any]:
    def refuse(value: Any) -> Any:
        raise AssertionError(f"{title}: describe() holds {type(value).__name__}, which `run.json` cannot")

    return refuse
