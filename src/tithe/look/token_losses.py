"""The loss of every response token of some records, from a run that kept them or read by the run's model."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.engine.model_source import find_model, load_tokenizer
from tithe.errors import DataError, ModelError
from tithe.look.finished_run import FinishedRun, read_table
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache
from tithe.run.folder import TOKENS
from tithe.run.method import set_up
from tithe.run.score import Scoring

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

DIGITS = 2
PASSES = ("given", "alone")
# Settings of a run that a look at its tokens does not take over.
WITHOUT: dict[str, Any] = {"residualise": None, "warmup": False, "answers": None, "pipeline": None}
Passes = Mapping[str, tuple[Sequence[int], Sequence[float]]]  # pass -> token ids, and their NLL in nats


@dataclass(frozen=True)
class TokenLosses:
    """Token likelihoods of some records.

    Args:
        rows: id -> passes, whose lists hold the scored tokens.
        tokenizer: turns ids into text; None if there are no rows.
    """

    rows: Mapping[str, Passes] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of(cls, run: FinishedRun, wanted: Collection[str], reporter: Reporter) -> TokenLosses:
        """Take the losses that the run kept, or read them with its model; nothing is stored.

        Args:
            run: the run.
            wanted: ids of the records.
            reporter: prints progress.

        Raises:
            TitheError: the run had no model, or its model cannot be read.
        """
        if not wanted:
            return cls()
        model = run.reading.get("model")
        if not model:
            if not run.keeps_tokens:
                raise DataError("this run read no model, so its tokens have no losses", hint="leave `--tokens` out")
            return cls()
        source = find_model(str(model["name"]), weights=False)
        tokenizer = load_tokenizer(source, trust_remote_code=run.settings.trust_remote_code)
        table = read_table(run.folder / TOKENS) if run.keeps_tokens else read_tokens(run, wanted, reporter)
        return cls(rows_of(table, wanted), tokenizer)

    def view(self, id_: str) -> dict[str, list[Any]]:
        """Return text and losses of a record's tokens.

        Returns:
            `text`, `given`, `alone`: lists of equal length, None where a pass does not score the token: the first one
            has nothing before it in the pass without the prompt.
        """
        assert self.tokenizer is not None, "there are rows"
        passes = self.rows[id_]
        ids = max((one for one, _ in passes.values()), key=len)
        found: dict[str, list[Any]] = {"text": pieces(self.tokenizer, ids)}
        for name in PASSES:
            _, losses = passes.get(name, ((), ()))
            found[name] = aligned(losses, len(ids), DIGITS)
        return found


def aligned(losses: Iterable[float], tokens: int, digits: int | None = None) -> list[float | None]:
    """Return a loss for each of so many tokens: a pass scores the last ones, and None stands for the others."""
    found = [float(one) if digits is None else round(float(one), digits) for one in losses][-tokens:]
    return [*[None] * (tokens - len(found)), *found]


def rows_of(table: pa.Table, wanted: Collection[str]) -> dict[str, Passes]:
    """Return the passes of these records; passes with worked examples are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen = table.filter(
        pc.and_(
            pc.is_in(table.column("id"), value_set=pa.array(sorted(wanted), pa.string())),
            pc.is_in(table.column("pass"), value_set=pa.array(PASSES)),
        )
    )
    found: dict[str, Passes] = {}
    for row in chosen.to_pylist():
        found[row["id"]] = {**found.get(row["id"], {}), row["pass"]: (row["token_ids"], row["nll"])}
    return found


def read_tokens(run: FinishedRun, wanted: Collection[str], reporter: Reporter) -> pa.Table:
    """Read the losses of these records with the run's model, as `ifd` asks for them.

    A run whose scorers need the tokenizer alone has no dtype and no fingerprint of its model: the one that it names is
    read as the run's settings say.

    Raises:
        TitheError: the model cannot be read, or is not the one that the run has read.
    """
    places: dict[int, set[int]] = {}
    names = ("id", "row", "turn")
    for id_, row, turn in zip(*(run.table.column(name).to_pylist() for name in names), strict=True):
        if id_ in wanted:
            places.setdefault(row, set()).add(turn)
    model = run.reading["model"]
    changed = {"scorer": ("ifd",), "per_token": True, "model": model["name"]} | WITHOUT
    changed |= {"dtype": model["dtype"]} if "dtype" in model else {}
    with tempfile.TemporaryDirectory() as place, closing(EngineCache(reporter)) as engines:
        own = run.settings.model_copy(update=changed)
        setup = set_up(own, source=run.source.part(places), folder=Path(place))
        if setup.model.fingerprint != model.get("fingerprint", setup.model.fingerprint):
            raise ModelError(
                f"the model `{model['name']}` has changed since the run in `{run.folder}` read it", hint="run it again"
            )
        Scoring(setup, engines, reporter, Path(place)).run()
        return read_table(Path(place) / TOKENS)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Return the text of each token; a character that several tokens make up stands at the last of them."""
    from tokenizers.decoders import DecodeStream

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [str(tokenizer.decode([one])) for one in ids]
    stream = DecodeStream(skip_special_tokens=False)
    return [stream.step(backend, one) or "" for one in ids]
