"""A command's options are made from its settings: a new one is one field."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from tithe.cli.app import HOW, Commands, Group, Usage
from tithe.cli.from_settings import Takes, kind_of, sentence
from tithe.settings import ScoreSettings
from tithe.typed import Count, Dtype, Flag, Labels, Texts


class MoreSettings(ScoreSettings):
    """Settings of a plugin's command.

    Args:
        wings: how many wings the example has; two by default, and
            never one.
        nets: nets to catch it with; may be repeated.
    """

    wings: Annotated[Count | None, Flag(("-w",), metavar="N")] = None
    nets: Annotated[Texts | None, Flag(emptied="catch it by hand")] = None
    tame: bool = True


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call a command that takes these settings; return them, or the help page."""
    module = ModuleType("plugin")
    module.MoreSettings = MoreSettings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plugin", module)
    made: list[Any] = []

    @Takes("plugin:MoreSettings", argument="dataset", needs={"model": ("no model is given", "`--model`")})
    def catch(settings: Any, twice: Annotated[bool, typer.Option("--twice", help="Try again.")] = False) -> None:
        """Catch it."""
        made.append((settings, twice))

    program = Commands(cls=Group, **HOW)
    program.command()(catch)
    program.command("other")(lambda: None)

    def carry_out(*arguments: str) -> Any:
        done = CliRunner().invoke(program, ["catch", *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return made.pop() if made else done.output

    return carry_out


def test_one_more_field_is_one_more_option(call: Any) -> None:
    page = " ".join(call("--help").split())
    assert "-w, --wings N How many wings the example has; two by default, and never one." in page
    assert "--no-nets Catch it by hand." in page and "--tame / --no-tame" in page
    assert "--max-length" in page and "Catch it." in page
    settings, twice = call("d.jsonl", "-m", "m", "-w", "2", "--nets", "red", "--nets", "blue", "--no-tame", "--twice")
    assert (settings.dataset, settings.wings, settings.nets, settings.tame) == ("d.jsonl", 2, ("red", "blue"), False)
    assert twice and settings.max_length is None


def test_what_is_left_out_is_the_settings_default(call: Any) -> None:
    settings, twice = call("--dataset", "d.jsonl", "--model", "m")
    assert settings == MoreSettings(dataset="d.jsonl", model="m") and not twice
    assert call("d.jsonl", "-m", "m", "--no-nets")[0].nets == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["d.jsonl"], "no model is given"),
        (["d.jsonl", "--dataset", "e.jsonl", "-m", "m"], "two data sets: `d.jsonl` and `--dataset e.jsonl`"),
        (["d.jsonl", "-m", "m", "--no-nets", "--nets", "red"], "`--no-nets` and `--nets` exclude each other"),
        (["d.jsonl", "-m", "m", "--wings", "2", "--wings", "3"], "`--wings` is given 2 times"),
    ],
)
def test_a_command_line_that_cannot_be_meant(call: Any, arguments: list[str], said: str) -> None:
    with pytest.raises(Usage, match=said):
        call(*arguments)


def test_types_of_options() -> None:
    class Kinds(ScoreSettings):
        a: Count | None = None
        b: Dtype = "auto"
        c: Labels = ()
        d: int | Literal["auto"] = 8
        e: Annotated[tuple[int, ...], Flag(kind=int)] = ()
        f: bool | None = None

    kinds = [kind_of(Kinds.model_fields[name]) for name in "abcdef"]
    assert kinds == [int, str, list[str], str, int, bool]


def test_help_is_a_sentence() -> None:
    assert sentence("file or folder") == "File or folder." and sentence("`a` or `b`.") == "`a` or `b`."
    assert sentence("") == ""
