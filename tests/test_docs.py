"""What the documents say is true: every block runs, shown output is what comes, generated pages are fresh."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import importlib.util
import inspect
import io
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

import tithe
from tests.forked import forked_tithe
from tests.small_model import make_model
from tithe import errors, plugins
from tithe.run.table import COUNTS, FIXED

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "SKILL.md", *sorted(DOCS.glob("*.md"))]
EXECUTED = ("python", "console", "bash")
NOT_RUN_AT_MOST = 6
PLUGIN = "plugins.md"

BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"file: (\S+)")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the comment right before it says."""

    kind: str
    text: str
    mark: str
    line: int

    @property
    def file(self) -> str | None:
        found = FILE.fullmatch(self.mark)
        return found[1] if found else None

    @property
    def runs(self) -> bool:
        return self.kind in EXECUTED and self.file is None and not self.mark.startswith("not run: ")


def blocks(page: Path) -> list[Block]:
    text = re.sub(r"<!-- demo -->.*?<!-- /demo -->", lambda m: "\n" * m[0].count("\n"), page.read_text(), flags=re.S)
    return [
        Block(found["kind"], found["text"], found["mark"] or "", text.count("\n", 0, found.start("text")) + 1)
        for found in BLOCK.finditer(text)
    ]


@pytest.fixture(scope="session")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data.jsonl` and `my-model`, the names that the documents use."""
    place = tmp_path_factory.mktemp("documents")
    starter = (ROOT / "src/tithe/pocket/starter.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (place / "data.jsonl").write_text("".join(starter[:120]), encoding="utf-8")
    make_model(place / "my-model")
    return place


@pytest.fixture
def there(small_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder that holds them, and is the working folder."""
    (tmp_path / "data.jsonl").write_bytes((small_files / "data.jsonl").read_bytes())
    (tmp_path / "my-model").symlink_to(small_files / "my-model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def forked_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with forked_tithe(tmp_path_factory.mktemp("forked")) as folder:
        yield folder


def search_path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def shell(command: str, more: dict[str, str]) -> tuple[int, str]:
    """Exit code, and stdout and stderr as a terminal of 100 columns would have them."""
    env = os.environ | {"PATH": search_path(), "COLUMNS": "100", "NO_COLOR": "1"} | more
    done = subprocess.run(
        ["bash", "-c", command],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout


def commands(text: str) -> list[tuple[str, str]]:
    """(command, shown output) of a console block; `> ` goes on with the command before."""
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            found[-1][1].append(line)
    return [("\n".join(command), "\n".join(shown)) for command, shown in found]


def fits(shown: str, came: str) -> bool:
    """Whether an output is the one shown: `...` is any text, a line of it any lines; columns may be wider or not."""
    lines = [re.escape(line).replace(r"\.\.\.", ".*") for line in narrow(shown)]
    pattern = "".join(r"(?:.*\n)*" if line == ".*" else f"{line}\n" for line in lines)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in narrow(came))) is not None


def narrow(text: str) -> list[str]:
    """Lines without spaces and empty lines at the end, and with columns two spaces apart."""
    return [re.sub(r"(?<=\S) {2,}", "  ", line.rstrip()) for line in text.rstrip().splitlines()]


PROGRESS = re.compile(
    r"^(?:[\w -]+: )*[\d,]+( of [\d,]+)? records(, [\d,]+ tokens/s)?(, about [\d,]+ (s|min) left)?\n", re.MULTILINE
)
KERNELS = re.compile(r" by oneDNN \([\d.]+ times as fast as torch's own choice, and as true\)")  # on some processors
STORED = re.compile(r"^note: `.*` has answers of this model on this data: .*\n", re.MULTILINE)


def run_console(text: str, more: dict[str, str], where: str) -> None:
    for command, shown in commands(text):
        code, came = shell(command, more)
        came = KERNELS.sub("", PROGRESS.sub("", came))  # a slow machine says how far it is
        if not STORED.search(f"{shown}\n"):  # the block before left a run folder; a reader may have none
            came = STORED.sub("", came)
        failing = re.search(r"^error: ", shown, re.MULTILINE) is not None
        assert (code != 0) == failing, f"{where}: `{command}` ended with {code}:\n{came}"
        if shown:
            assert fits(shown, came), f"{where}: `{command}` shows\n{shown}\n\nbut gives\n{came}"


def run_page(page: Path, more: dict[str, str]) -> None:
    """All blocks of a page, one after the other in one folder; Python blocks share their names."""
    names: dict[str, object] = {"__name__": "__example__"}
    for block in blocks(page):
        if not block.runs:
            continue
        where = f"{page.name}:{block.line}"
        if block.kind == "console":
            run_console(block.text, more, where)
        elif block.kind == "bash":
            code, came = shell(f"set -euo pipefail\n{block.text}", more)
            assert code == 0, f"{where} ended with {code}:\n{came}"
        else:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n" * block.line + block.text, str(page), "exec", dont_inherit=True), names)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p.name != PLUGIN], ids=lambda page: page.name)
def test_every_block_runs(page, there, forked_program):
    """With forks of a program that has imported everything; the demo below runs the installed one."""
    run_page(page, {"PATH": f"{forked_program}{os.pathsep}{search_path()}"})


def install(files: dict[str, str], target: Path) -> None:
    """What `pip install --target` leaves behind, without an index or a build backend: modules and a dist-info."""
    project = tomllib.loads(files["tithe-example/pyproject.toml"])["project"]
    for name, text in files.items():
        if name.endswith(".py"):
            (target / Path(name).name).write_text(text)
    info = target / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"].items()
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in groups]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.mark.slow
def test_the_example_package_of_the_plugin_page_works(there, forked_program, tmp_path_factory):
    files = {block.file: block.text for block in blocks(DOCS / PLUGIN) if block.file}
    assert set(files) == {f"tithe-example/{name}" for name in ("pyproject.toml", "tithe_example.py", "test_example.py")}
    for name, text in files.items():
        path = there / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    target = tmp_path_factory.mktemp("site")
    install(files, target)
    more = {"PATH": f"{forked_program}{os.pathsep}{search_path()}", "PYTHONPATH": str(target)}
    run_page(DOCS / PLUGIN, more)
    code, came = shell("tithe score data.jsonl --scorer bits --model my-model --limit 5 -o bits.parquet", more)
    assert code == 0 and "bits" in came, came


def test_few_blocks_are_left_out():
    left_out = [(page.name, block.line) for page in PAGES for block in blocks(page) if block.mark.startswith("not run")]
    assert len(left_out) <= NOT_RUN_AT_MOST, left_out
    assert all(re.fullmatch(r"not run: \S.{5,}", b.mark) for p in PAGES for b in blocks(p) if "not run" in b.mark)


def test_blocks_are_found():
    kinds = [block.kind for page in PAGES for block in blocks(page) if block.runs]
    assert kinds.count("console") >= 15 and kinds.count("python") >= 8 and kinds.count("bash") >= 2


def test_shown_output_is_really_compared():
    assert fits("a\n...\nc", "a\nb\nb\nc\n") and fits("kept ... on ifd", "kept 5 on ifd  \n") and fits("...", "")
    assert fits("rows      5", "rows  5\n\n") and not fits("rows 5", "rows  5\n")
    assert not fits("a\nc", "a\nb\nc\n") and not fits("a", "a\nb\n") and not fits("kept 5.0", "kept 5x0\n")
    assert commands("$ cat <<END\n> x\n> END\nx\n$ ls") == [("cat <<END\nx\nEND", "x"), ("ls", "")]


def generator():
    spec = importlib.util.spec_from_file_location("generate_docs", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_is_fresh():
    assert (DOCS / "config.md").read_text() == generator().config_page(), "run `python docs/generate.py`"


def test_the_page_of_the_python_api_is_fresh():
    assert (DOCS / "api.md").read_text() == generator().api_page(), "run `python docs/generate.py`"


def test_the_page_of_the_python_api_has_all_that_is_public():
    """Every public function with its parameters, every class that they return, every error."""
    page = (DOCS / "api.md").read_text()
    for name in tithe.__all__:
        assert f"\n### `tithe.{name}`\n" in page, name
        for parameter in inspect.signature(getattr(tithe, name)).parameters:
            assert re.search(rf"[ (*]{parameter}: ", page), f"{name}: {parameter}"
    for name in (
        "SelectResult",
        "ScoreResult",
        "PlanResult",
        "BenchResult",
        "Dataset",
        "Example",
        "Scorer",
        "Selector",
    ):
        assert re.search(rf"^### `tithe\.[\w.]+\.{name}`$", page, re.M), name
    for error in errors.TitheError.__subclasses__():
        assert error.__module__ != errors.__name__ or error.__name__ in page, error


@pytest.mark.slow
def test_the_page_of_the_command_line_is_fresh():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    if version("typer") != pins["typer"]:
        pytest.skip(f"typer {version('typer')} lays out help pages in another way than {pins['typer']}")
    assert (DOCS / "cli.md").read_text() == generator().cli_page(), "run `python docs/generate.py`"


def test_every_command_has_its_help_page():
    made = generator()
    known = {tuple(command.split()) for command in made.COMMANDS}
    groups = {command[:-1] for command in known}
    listed = {(*group, name) for group in groups for name in names_of(made.help_of(*group))}
    assert listed == known | groups - {()}


def names_of(page: str) -> list[str]:
    """The commands that a help page lists."""
    return re.findall(r"^  ([\w-]+) ", re.split(r"^Commands:$", page, flags=re.M)[1], re.M)


def test_every_scorer_selector_and_template_is_documented():
    from tithe.data.templates import TEMPLATE_NAMES

    scores, selecting = (DOCS / "scores.md").read_text(), (DOCS / "selecting.md").read_text()
    ours = {point.name: point.group for point in tithe_entry_points()}
    assert ours
    for name in plugins.names(plugins.SCORERS):
        if name in ours:
            assert f"\n## `{name}`\n" in scores, name
    for name in plugins.names(plugins.SELECTORS):
        if name in ours:
            assert f"\n| `{name}` |" in selecting, name
    for name in TEMPLATE_NAMES:
        assert f"\n| `{name}` |" in (DOCS / "templates.md").read_text(), name


def tithe_entry_points():
    from importlib.metadata import distribution

    groups = (plugins.SCORERS, plugins.SELECTORS)
    return [point for point in distribution("tithe").entry_points if point.group in groups]


def test_every_column_of_the_score_table_is_documented():
    for name in (*FIXED, *COUNTS):
        assert f"\n| `{name}` |" in (DOCS / "output.md").read_text(), name


def test_links_lead_somewhere():
    pages = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "AGENTS.md"]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.slow
def test_docstring_examples_run():
    for found in pkgutil.walk_packages(tithe.__path__, "tithe."):
        module = importlib.import_module(found.name)
        failed, _ = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert failed == 0, found.name


@pytest.mark.slow
def test_the_example_of_the_package_runs(there):
    code = typing.cast(str, tithe.__doc__).partition("\n\n")[2]
    assert "tithe.select" in code
    (there / "path" / "or").mkdir(parents=True)
    (there / "path" / "or" / "hub-id").symlink_to(there / "my-model")
    exec(compile(code, "tithe/__init__.py", "exec"), {})
    assert (there / "kept.jsonl").exists()


def long_options(page: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]*", page))


# Of other programs that the documents call: accelerate, torchrun, docker, ms-swift, an example, pip, uv, pipx, mkdocs.
OTHERS_OPTIONS = {
    "--loss_scale",
    "--is_binary_loss_scale",
    "--multi_gpu",
    "--num_processes",
    "--nproc-per-node",
    "--cpus",
    "--plot",
}
OTHERS_OPTIONS |= {
    "--rm",
    "--user",
    "--gpus",
    "--build-arg",
    "--index-url",
    "--index",
    "--from",
    "--spec",
    "--pip-args",
}


def test_every_option_that_a_page_names_exists():
    """In tithe's help pages: a page that promises an option which is not there promises too much."""
    known = long_options((DOCS / "cli.md").read_text())
    assert len(known) > 50
    for page in PAGES:
        unknown = long_options(page.read_text()) - known - OTHERS_OPTIONS
        assert not unknown, f"{page.name} names {sorted(unknown)}"


def test_no_page_promises_a_later_version():
    for page in PAGES:
        found = re.search(r"not (yet )?part of this version|not implemented|coming soon|TODO", page.read_text(), re.I)
        assert found is None, f"{page.name}: {found}"
