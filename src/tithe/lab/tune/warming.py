"""Give a model its brief experience: choose examples, train one epoch on them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tithe.data.export import write_records
from tithe.errors import SettingsError, demand
from tithe.lab.tune.choice import Choice, choose
from tithe.lab.tune.folder import CHOSEN, DONE, read
from tithe.lab.tune.parts import TuneParts
from tithe.lab.tune.processes import is_main, wait
from tithe.lab.tune.rows import TrainRows
from tithe.lab.tune.train import demand_packages
from tithe.lab.tune.tune import TuneResult, carry_out
from tithe.lab.tune.warmup_settings import WarmupSettings
from tithe.report.reporter import Talk
from tithe.run.folder import has_finished, write_json

RECORDS = "chosen.jsonl"


def warm_up(settings: WarmupSettings, output: Path, *, overwrite: bool = False, talk: Talk | None = None) -> TuneResult:
    """Train a model for one epoch on a few examples of the data set that it will score.

    Args:
        settings: which examples, and how.
        output: folder of the model, with `chosen.jsonl`: the records it was trained on. Goes on, or is found finished,
            as that of `tune`.
        overwrite: choose and train anew.
        talk: who listens.

    Raises:
        TitheError: whatever stops it.
    """
    demand_packages()
    return carry_out(WarmupParts(settings), output, overwrite=overwrite, talk=talk or Talk())


@dataclass
class WarmupParts(TuneParts):
    """The parts of a training on chosen examples."""

    settings: WarmupSettings
    choice: Choice | None = field(default=None, init=False)

    def check(self, output: Path) -> None:
        if experienced(self.source.adapter or self.source.folder):
            raise SettingsError(
                f"the model `{self.source.name}` has had its brief experience already",
                hint="score with it as it is, or give the model it was made of",
            )
        super().check(output)

    def identity(self) -> dict[str, Any]:
        s = self.settings
        return super().identity() | {name: getattr(s, name) for name in ("records", "choose", "clusters", "encoder")}

    def prepare(self, place: Path, talk: Talk, *, overwrite: bool) -> None:
        """Choose the examples, or find the choice that an interrupted run has made."""
        file, identity = place / CHOSEN, self.identity()
        if is_main():
            there = None if overwrite else read(file)
            if there is None or there.get("identity") != identity:
                choice = choose(self, self.everything, talk)
                write_records(self.dataset, choice.places(), place / RECORDS, overwrite=True)
                write_json(file, {"identity": identity, **choice.as_dict()})
        wait()
        told = read(file)
        assert told is not None
        self.choice = Choice(told["chosen"], told["facts"])
        facts = self.choice.facts
        talk.say(f"{len(self.choice.chosen):,} of {facts['candidates']:,} examples for the experience: {facts['how']}")

    def foresee(self) -> None:
        demand(self.everything.rows)

    @cached_property
    def everything(self) -> TrainRows:
        """The rows of the whole data set."""
        return self.read()

    @cached_property
    def rows(self) -> TrainRows:
        """Those of the chosen examples."""
        assert self.choice is not None, "prepare comes first"
        names = {one["id"] for one in self.choice.chosen}
        return self.everything.only(names)

    def describe(self) -> dict[str, Any]:
        if self.choice is None:  # of a training that did not come so far
            return super().describe()
        return {**super().describe(), "warmup": {**self.choice.facts, "chosen": list(self.choice.chosen)}}


def experienced(folder: Path) -> bool:
    """Whether a folder holds what `warm_up` made."""
    record = read(folder / DONE)
    return record is not None and has_finished(record) and "warmup" in record
