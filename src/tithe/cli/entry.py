"""Entry point of `tithe`: read arguments, turn exceptions into messages and exit codes."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import traceback
from typing import Any, NoReturn

import typer

from tithe.cli.app import Usage, app
from tithe.cli.completion import demand_shell, keep_help_on_a_line
from tithe.errors import SettingsError, TitheError
from tithe.printable import hint_line, one_line, printable, steady_stderr
from tithe.signals import SignalHandler, handle_ending_signals

PARSER_INTERRUPTED = 130  # Typer's exit code for a `KeyboardInterrupt`
ParserError: type[Exception] = typer.BadParameter.__mro__[
    2
]  # `ClickException`, found by way of Typer, which may bring its own Click


GOES_ON = "the same command goes on from there"
KEPT = {
    ("score", "select", "tiers build", "judge"): f"what was scored or answered by then is kept: {GOES_ON}",
    ("evaluate",): f"what was measured by then is kept: {GOES_ON}",
    ("experiment",): f"the cells that are done are kept: {GOES_ON}",
    ("tune", "warmup"): "the same command goes on from the last checkpoint, if there was one",
    ("head train",): "nothing is kept of an unfinished training",
}  # commands -> the hint if a signal ends them
AGAIN = "nothing is kept: the same command begins anew"
MAY_BE_EMPTY = {"--alone-header"}  # options whose text may be empty


def demand_values(arguments: list[str]) -> None:
    """Refuse empty arguments: from an unset shell variable, one would silently mean the current folder or a default.

    Raises:
        SettingsError: an argument is empty; names its option.
    """
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, equals, value = argument.partition("=")
        empty = not argument.strip() or (option.startswith("--") and equals and not value.strip())
        option = option if equals else before
        if empty and option not in MAY_BE_EMPTY:
            where = f"of `{option}`" if option.startswith("-") else "on the command line"
            raise SettingsError(f"a value {where} is empty", hint="an unset variable? leave it out, or give a value")


def dashed(arguments: list[str]) -> list[str]:
    """Replace underscores in option names, so that `--max_length=5` means `--max-length=5`."""
    out: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            return out + arguments[i:]
        name, equals, value = argument.partition("=")
        out.append(name.replace("_", "-") + equals + value if argument.startswith("--") else argument)
    return out


def main() -> None:
    """Run the command and exit: 0 for success, 1 for an error, 2 for wrong usage, 128 plus the number of a signal."""
    take_closed_streams()
    with steady_stderr(), handle_ending_signals() as ending:
        run(ending)


def take_closed_streams() -> None:
    """Occupy the descriptors of a closed stdin or stdout; else the next file opened would get them, and our output.

    They are opened for reading only, so that writing fails and lost output is an error.
    """
    for place in (0, 1):
        try:
            os.fstat(place)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDONLY)
            if nowhere != place:
                os.dup2(nowhere, place)
                os.close(nowhere)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # stays open as long as the process


def run(ending: SignalHandler) -> NoReturn:
    """Run the command line and exit with its code."""
    # Set before any of these libraries is imported: no warnings about forks, progress bars or log lines between ours.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths may contain bytes that are not UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments = dashed(sys.argv[1:])
        demand_values(arguments)
        demand_shell(arguments)
        keep_help_on_a_line()
        code = app(arguments, prog_name="tithe", standalone_mode=False) or 0
        print(end="", flush=True)  # errors of a buffered stdout show here, not at exit
    except (KeyboardInterrupt, typer.Abort):
        code = PARSER_INTERRUPTED
    except TitheError as error:
        if os.environ.get("TITHE_DEBUG"):
            traceback.print_exception(error)
        fail(str(error), error.hint, code=2 if isinstance(error, Usage) else 1)
    except ParserError as error:
        wrong_usage(error)
    except BrokenPipeError:
        discard_output()
        code = 1
    except Exception as error:
        lost = output_error()  # printing failed, such as on a full disk: the exception may be of any type
        if lost is not None:
            discard_output()
            why = "it is closed" if lost.errno == errno.EBADF else lost.strerror or lost
            fail(f"cannot write to standard output: {why}", "files are not affected")
        if os.environ.get("TITHE_DEBUG"):
            raise
        fail(f"unexpected {type(error).__name__}: {error}", "this is a fault in tithe; TITHE_DEBUG=1 shows where")
    if code == PARSER_INTERRUPTED:
        interrupted(ending)
    sys.exit(code)


def output_error() -> OSError | None:
    """Flush standard output and return the error, if any."""
    try:
        print(end="", flush=True)
    except OSError as error:
        return error
    return None


def discard_output() -> None:
    """Discard the rest of standard output, so that flushing it at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def interrupted(ending: SignalHandler) -> NoReturn:
    """Say what is kept, and exit with the code of the signal."""
    words = [*sys.argv[1:3], "", ""][:2]
    kept = next((hint for commands, hint in KEPT.items() if words[0] in commands or " ".join(words) in commands), AGAIN)
    by = ending.received
    said = "interrupted" if by in (None, signal.SIGINT) else f"interrupted by {by.name}"
    fail(said, kept, code=ending.code)


def wrong_usage(error: Any) -> NoReturn:
    """Print the parser's error as one sentence, or the help page if no arguments were given, and exit."""
    text = error.format_message()
    if text.startswith("Usage:"):
        print(printable(text, keep="\n"), file=sys.stderr)
        sys.exit(2)
    where = getattr(error.ctx, "command_path", "tithe")
    fail(text[:1].lower() + text[1:].rstrip("."), f"`{where} --help` lists what there is", code=2)


def fail(message: str, hint: str | None, code: int = 1) -> NoReturn:
    """Print an error and its hint on a line each, and exit."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    if hint:
        print(f"hint: {hint_line(hint)}", file=sys.stderr)
    sys.exit(code)
