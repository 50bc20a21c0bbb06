"""Shell completion: what each shell is answered, in its own protocol, and that answering is light."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.command import child
from tests.e2e.test_help import HEAVY, LIGHT
from tithe import plugins
from tithe.cli import completion
from tithe.cli.completion import OFFERED, SHELLS, completer, demand_shell, listed, paths
from tithe.data.templates import TEMPLATE_NAMES
from tithe.errors import TitheError

FILES = {"my model/", "start.jsonl"}
COMMANDS = {"select", "score", "plan", "scorers", "doctor", "export", "tiers", "head", "judge"}


def ask(shell: str, line: str, where: Path) -> list[str]:
    """Ask as the shell's script does; `line` ends where the cursor is."""
    words = line.split(" ")
    given = {
        "bash": {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]
    env = os.environ | given | {"_TITHE_COMPLETE": f"complete_{shell}"}
    call = [sys.executable, "-m", "tithe.cli"]
    done = subprocess.run(call, env=env, cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    if shell == "zsh":  # one call of `_arguments`, a quoted value a line
        return [line.split('"')[1] for line in lines if '"' in line]
    return [line.split("\t")[0] for line in lines if line]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "start.jsonl").touch()
    (tmp_path / "my model").mkdir()
    (tmp_path / ".hidden").touch()
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_each_shell_is_answered(shell: str, files: Path) -> None:
    assert set(ask(shell, "tithe ", files)) >= COMMANDS
    assert ask(shell, "tithe head tr", files) == ["train"]
    assert ask(shell, "tithe select --gate-d", files) == ["--gate-damage"]
    assert ask(shell, "tithe select starter --scorer ", files) == plugins.names(plugins.SCORERS)
    assert ask(shell, "tithe select starter --scorer ifd,mi", files) == ["ifd,miwv"]
    assert ask(shell, "tithe select starter -s ifd --dtype fp", files) == ["fp32", "fp16", "fp8"]
    assert ask(shell, "tithe select st", files) == ["starter", "start.jsonl"]
    assert ask(shell, "tithe select nothing-like-this", files) == []  # left to the shell, which completes paths
    assert ask(shell, "tithe look ", files) == []
    # A value a line, however long its help is.
    assert set(ask(shell, "tithe select starter --template ", files)) == {*TEMPLATE_NAMES, *FILES}
    assert all(option.startswith("-") for option in ask(shell, "tithe select --", files))


@pytest.mark.parametrize(
    ("name", "start", "offered"),
    [
        ("selector", "k", ["kcenter", "kmeans"]),
        ("template", "al", ["alpaca"]),
        ("preset", "ch", ["cherry"]),
        ("model", "p", ["pocket"]),
        ("encoder", "t", ["tfidf"]),
        ("recipe", "al", ["alpaca"]),
        ("gate", "a", ["auto"]),
        ("scorer", "ifd,ifd", []),  # each once
        ("by", "ifd,mi", []),  # one name, no list
        ("model", "/", []),
    ],
)
def test_values_are_offered(
    name: str, start: str, offered: list[str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    assert [value for value, _ in completer(name)(start)] == offered


def test_paths_stand_beside_names(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    assert [value for value, _ in completer("model")("")] == ["pocket", "my model/", "start.jsonl"]
    assert list(paths("m")) == ["my model/"]


def test_choices_come_from_the_type() -> None:
    from tithe.settings import SelectSettings

    fields = SelectSettings.model_fields
    assert listed(fields["truncation"].annotation) == ("response", "prompt", "problem")
    assert listed(fields["limit"].annotation) == () == listed(fields["drop"].annotation)
    assert [value for value, _ in completer("keep_of", listed(fields["keep_of"].annotation))("k")] == ["kept"]


def test_what_is_offered_is_accepted() -> None:
    """Lists that are written out, because importing the true ones takes too long, are the true ones."""
    from typing import get_args

    from tithe.data.formats import Shape
    from tithe.lab import exports

    assert set(completion.formats()) == {"auto", *get_args(Shape)}
    assert set(completion.export_targets()) == {*exports.SHAPES, "llamafactory", *exports.SNIPPETS}
    assert all(values() for values in OFFERED.values())


def test_every_offer_has_its_option() -> None:
    """A renamed setting would leave its values behind."""
    root = Path(completion.__file__).parents[1]
    sources = [path for path in root.rglob("*.py") if path.name == "settings.py" or path.parent.name == "cli"]
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    known = {node.target.id for node in nodes if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    known |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    assert set(OFFERED) <= known


@pytest.mark.parametrize("line", ["tithe select starter --scorer ", "tithe ", "tithe export --to "])
def test_completing_imports_nothing_heavy(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TITHE_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", line)
    out, err = child(f"HEAVY = {HEAVY}\n{LIGHT}", fresh=True).communicate(timeout=60)
    assert out.splitlines()[-1] == "heavy: []" and len(out.splitlines()) > 3, (out, err)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_script_works_in_bash(files: Path) -> None:
    """The printed script, sourced and called as bash calls it on the Tab key."""
    program = files / "bin" / "tithe"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tithe.cli "$@"\n')
    program.chmod(0o755)
    script = """
        source <(_TITHE_COMPLETE=source_bash tithe)
        complete -p tithe
        COMP_WORDS=(tithe select st) COMP_CWORD=2
        _tithe_completion tithe
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    env = os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
    call = ["bash", "--norc", "-c", script]
    done = subprocess.run(call, env=env, cwd=files, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["complete -o default -F _tithe_completion tithe", "starter", "start.jsonl"], (
        done
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_it_installs_itself_where_the_shell_looks(tmp_path: Path) -> None:
    """Twice, which changes nothing more."""
    script = f'"{sys.executable}" -m tithe.cli --install-completion; true'
    for _ in range(2):
        env = os.environ | {"HOME": str(tmp_path)}
        call = ["bash", "--norc", "-c", script]
        done = subprocess.run(call, env=env, capture_output=True, text=True, check=False)
        assert "bash completion installed in" in done.stdout, done.stderr
    placed = tmp_path / ".bash_completions" / "tithe.sh"
    assert "_TITHE_COMPLETE=complete_bash" in placed.read_text()
    assert (tmp_path / ".bashrc").read_text().count(str(placed)) == 1


@pytest.mark.parametrize("shell", SHELLS)
def test_a_known_shell_is_left_to_typer(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def detected() -> tuple[str, str]:
        asked.append(shell)
        return shell, f"/bin/{shell}"

    monkeypatch.setattr("shellingham.detect_shell", detected)
    demand_shell(["--show-completion"])  # raises nothing
    assert asked == [shell]


@pytest.mark.parametrize("option", completion.OPTIONS)
def test_an_unknown_shell_is_one_sentence(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import shellingham

    def undetected() -> tuple[str, str]:
        raise shellingham.ShellDetectionFailure

    monkeypatch.setattr("shellingham.detect_shell", undetected)
    with pytest.raises(TitheError, match="which shell this is cannot be told") as caught:
        demand_shell([option])
    assert "_TITHE_COMPLETE=source_bash" in (caught.value.hint or "")
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("nu", "/bin/nu"))
    with pytest.raises(TitheError, match="no completion for the shell `nu`"):
        demand_shell([option])
    demand_shell(["--version"])
