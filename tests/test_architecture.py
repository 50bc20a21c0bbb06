"""Imports point down the list of floors, torch waits, and nothing is evaluated or unpickled."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tithe"

# From the top floor to the ground. A room imports itself and the rooms on lower floors; rooms of one floor do not
# know each other.
FLOORS = (
    {"__init__", "__main__"},
    {"lab_api"},
    {"cli", "api"},
    {"lab.experiment"},
    {"lab.judge"},
    {"lab.evaluate", "lab.tiers"},
    {"lab.heads", "lab.tune", "lab.writing", "lab.speed"},
    {"lab.endpoint", "lab.exports", "lab.curve", "lab.contamination_report"},
    {"lab"},
    {"publish"},
    {"look", "inspect"},
    {"run"},
    {"settings"},
    {"duplicates"},
    {"contamination"},
    {"report"},
    {"stages"},
    {"runners"},
    {"testing"},
    {"plugins"},
    {"scorers"},
    {"selectors"},
    {"planner"},
    {"gate"},
    {"neighbours"},
    {"engine"},
    {"data"},
    {"pocket"},
    {"typed", "settings_file"},
    {"records", "specs"},
    {"foreign", "extras"},
    {"errors", "signals"},
    {"printable"},
)
# A scorer or selector is arithmetic: it reads no file, calls no model and knows no plan.
NARROW = {"scorers": {"gate", "neighbours", "records", "errors"}, "selectors": {"neighbours", "records", "errors"}}
PRINTING = {"cli", "inspect", "look", "run", "report"}
PRINTING |= {"lab.evaluate", "lab.experiment", "lab.tiers", "lab.contamination_report"}
TERMINAL = {"typer": {"cli"}, "click": {"cli"}, "rich": PRINTING, "httpx2": {"lab.endpoint"}}
HEAVY = ("torch", "transformers", "pandas", "datasets")
HEAVY_ROOMS = {"engine", "neighbours", "runners", "lab.heads", "lab.tune", "lab.evaluate"}
VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "misc"}
CELL = "lab/evaluate/cell.py"  # runs generated code: it is never imported to do so, but started inside the sandbox
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
COUNTS_CORES = "joblib.cpu_count"  # all else of joblib may unpickle


def room(path, root):
    """The first part of a module's name below the package; in the lab, each of its rooms is one."""
    return named(path.relative_to(root).with_suffix("").parts)


def named(parts):
    """`lab.tune` of (lab, tune, train), `engine` of (engine, model)."""
    inside = parts[0] == "lab" and len(parts) > 1 and parts[1] != "__init__"
    return ".".join(parts[: 2 if inside else 1])


def floor(name):
    return next((height for height, rooms in enumerate(FLOORS) if name in rooms), None)


def imports(tree, path, root):
    """(line, dotted name, whether at module level) of every import; those of this package as `tithe.room...`."""
    top = set(map(id, module_level(tree)))
    package = ("tithe", *path.relative_to(root).parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, id(node) in top
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}", id(node) in top


def module_level(tree):
    """Statements that run when the module is imported; not those under `if TYPE_CHECKING`."""
    queue = list(tree.body)
    while queue:
        node = queue.pop()
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue.extend(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            queue.extend(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


def trees(root):
    for path in sorted(root.rglob("*.py")):
        yield path, parsed(path.read_text(encoding="utf-8"))


@cache
def parsed(text):
    return ast.parse(text)


def upward(root):
    """Every import that does not point down."""
    found = []
    for path, tree in trees(root):
        here = room(path, root)
        if floor(here) is None:
            found.append(f"{path.name}: room `{here}` stands on no floor; give it one in FLOORS")
            continue
        for line, name, _ in imports(tree, path, root):
            if name.split(".")[0] != "tithe" or name == "tithe.__version__":
                continue
            there = named([*name.split(".")[1:], "__init__"])
            if there not in set().union(*FLOORS):
                there = "__init__"  # `from tithe import load`: the façade
            down = floor(there) > floor(here) and there in NARROW.get(here, {there})
            if there != here and not down:
                found.append(f"{path.relative_to(root)}:{line}: `{here}` imports `{there}`")
    return found


def foreign(root):
    """Terminal libraries below the command line, and heavy ones where a mere import would load them."""
    found = []
    for path, tree in trees(root):
        here = room(path, root)
        for line, name, at_top in imports(tree, path, root):
            library = name.split(".")[0]
            wrong = here not in TERMINAL.get(library, {here})
            wrong = wrong or (library in HEAVY and at_top and here not in HEAVY_ROOMS)
            if wrong:
                found.append(f"{path.relative_to(root)}:{line}: `{here}` imports `{library}`")
    return found


def unsafe(root):
    """Code that would run what a file says."""
    found = []
    for path, tree in trees(root):
        runs = path.relative_to(root).as_posix() == CELL
        lines = [line for line, name, _ in imports(tree, path, root) if may_unpickle(name)]
        lines += [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and runs_text(node, runs)]
        found += [f"{path.relative_to(root)}:{line}: evaluates or unpickles" for line in sorted(lines)]
    return found


def may_unpickle(name):
    return name != COUNTS_CORES and name.split(".")[0] in UNPICKLERS


def runs_text(call, may_execute=False):
    """Whether a call runs or unpickles what a file says; `exec` is the one deed of the cell."""
    name = ast.unparse(call.func)
    if may_execute and name == "exec":
        return False
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name in {"eval", "exec", "builtins.eval", "builtins.exec"}:
        return True
    if name == "torch.load":
        return given.get("weights_only") != "True"
    return name in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"} or given.get("allow_pickle") == "True"


# Circles that stand today behind `TYPE_CHECKING` or an import in a function: (who hides it, whom). The list may shrink.
HIDDEN: set[tuple[str, str]] = set()


def module_name(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(("tithe", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def circles(root):
    """Imports that close a circle, those under `TYPE_CHECKING` and in functions included: (module, imported)."""
    modules = {module_name(path, root) for path, _ in trees(root)}
    graph = {name: set() for name in modules}
    for path, tree in trees(root):
        here = module_name(path, root)
        for _, name, _ in imports(tree, path, root):
            there = name if name in modules else name.rpartition(".")[0]
            if there in modules and there != here:
                graph[here].add(there)
    return sorted((here, there) for here, near in graph.items() for there in near if here in reached(there, graph))


def reached(start, graph):
    seen, waiting = {start}, [start]
    while waiting:
        for name in graph[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def vague(root):
    return [str(path.relative_to(root)) for path in root.rglob("*.py") if path.stem in VAGUE]


def unmade(root):
    """Asserts that look at an attribute for what its making raises: `python -O` would leave them out."""
    found = []
    for path, tree in trees(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Assert) and makes(node.test):
                found.append(f"{path.relative_to(root)}:{node.lineno}: `demand` makes it under `python -O`, too")
    return found


def makes(test):
    if isinstance(test, ast.BoolOp):
        return all(map(makes, test.values))
    return isinstance(test, ast.Attribute)


CHECKS = (upward, foreign, unsafe, vague, unmade)


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_is_in_order(check):
    assert check(SOURCE) == []


def test_hidden_circles_only_become_fewer():
    assert set(circles(SOURCE)) == HIDDEN, "take out of HIDDEN what is gone; add nothing"


@pytest.mark.parametrize(
    "text",
    [
        "import tithe.b",
        "def f():\n    import tithe.b",
        "if TYPE_CHECKING:\n    from tithe.b import B",
        "def f():\n    from . import b",
    ],
)
def test_a_planted_circle_is_noticed(tmp_path, text):
    (tmp_path / "a.py").write_text(text)
    (tmp_path / "b.py").write_text("x = 1")
    assert circles(tmp_path) == []
    (tmp_path / "b.py").write_text("import tithe.c")
    (tmp_path / "c.py").write_text("from tithe.a import f")
    assert circles(tmp_path) == [("tithe.a", "tithe.b"), ("tithe.b", "tithe.c"), ("tithe.c", "tithe.a")]


def test_there_is_something_to_check():
    assert {"records", "errors", "scorers", "selectors", "plugins"} <= {room(path, SOURCE) for path, _ in trees(SOURCE)}


@pytest.mark.parametrize(
    ("check", "file", "text"),
    [
        (upward, "records.py", "from tithe.selectors.base import Selector"),
        (upward, "records.py", "import tithe.cli"),
        (upward, "records.py", "from tithe import plan"),
        (upward, "records.py", "from tithe import load"),
        (upward, "records.py", "import tithe"),
        (upward, "records.py", "from . import plan"),
        (upward, "records.py", "from .plan import plan"),
        (upward, "engine/store.py", "from ..plan import plan"),
        (upward, "engine/store.py", "def f():\n    from tithe.planner import plan"),
        (
            upward,
            "data/dataset.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tithe.run import Run",
        ),
        (upward, "plugins.py", "from tithe.testing import check_scorer"),
        (upward, "scorers/ifd.py", "from tithe.engine.loaded_model import load"),
        (upward, "scorers/ifd.py", "from tithe.selectors.rank import Top"),
        (upward, "attic.py", "x = 1"),
        (upward, "lab/attic/a.py", "x = 1"),
        (upward, "run/select.py", "from tithe.lab.tune.train import train"),
        (upward, "run/select.py", "def f():\n    from tithe.lab.tune.train import train"),
        (upward, "run/select.py", "import tithe.lab"),
        (upward, "lab/tune/train.py", "from tithe.lab.evaluate.task_files import rows"),
        (foreign, "engine/forward.py", "from rich.progress import Progress"),
        (foreign, "run.py", "import typer"),
        (foreign, "cli.py", "import torch"),
        (foreign, "cli.py", "try:\n    import datasets.load\nexcept ImportError:\n    pass"),
        (foreign, "scorers/ifd.py", "from torch import nn"),
        (unsafe, "engine/store.py", "import pickle"),
        (unsafe, "engine/store.py", "def f():\n    from joblib import load"),
        (unsafe, "engine/store.py", "import joblib"),
        (unsafe, "engine/model.py", "torch.load('x')"),
        (unsafe, "engine/model.py", "torch.load('x', weights_only=False)"),
        (unsafe, "engine/model.py", "np.load('x', allow_pickle=True)"),
        (unsafe, "settings.py", "yaml.load('x')"),
        (unsafe, "cli.py", "eval('1')"),
        (unsafe, "cli.py", "exec('1')"),
        (unsafe, "lab/evaluate/cell.py", "import marshal"),
        (unsafe, "lab/evaluate/cell.py", "exec('1')\nnp.load('x', allow_pickle=True)"),
        (unsafe, "lab/evaluate/cell.py", "eval('1')"),
        (vague, "engine/utils.py", ""),
        (unmade, "run/setup.py", "assert self.renderer"),
        (unmade, "run/setup.py", "def f(parts):\n    assert parts.dtype and parts.watch, 'why'"),
        (vague, "helpers.py", ""),
    ],
)
def test_a_planted_fault_is_noticed(tmp_path, check, file, text):
    assert check(tmp_path) == []
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert len(check(tmp_path)) == 1, check(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("planner.py", "from tithe.records import Ask\nfrom tithe.engine.store.keys import Key\nfrom . import errors"),
        (
            "scorers/ifd.py",
            "from tithe.scorers.base import Scorer\nfrom .base import Scorer\nfrom tithe.records import Ask",
        ),
        ("records.py", "from tithe import __version__"),
        ("cli.py", "def main():\n    import torch\n    import typer"),
        ("engine/model.py", "import torch\ntorch.load('x', weights_only=True)\nmodel.eval()\nyaml.safe_load('x')"),
        ("data/render.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import transformers"),
        ("__init__.py", "from tithe.cli import main"),
        ("run/setup.py", "assert self.choice is not None\nassert len(a) == 1\nassert a.b > 1 and isinstance(a, int)"),
        ("lab/evaluate/cell.py", "exec(compile('1', 'x', 'exec'))"),
    ],
)
def test_what_is_allowed_is_not_noticed(tmp_path, file, text):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert [fault for check in CHECKS for fault in check(tmp_path)] == []


@pytest.mark.parametrize("module", ["tithe", "tithe.plugins", "tithe.testing", "tithe.cli"])
def test_importing_loads_nothing_heavy(module):
    code = f"import json, sys, {module}; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.slow
def test_reading_with_a_model_loads_only_what_it_needs(tmp_path):
    """Scoring with a model leaves heavy libraries that it has no use for out of memory."""
    code = """
import json, sys
from pathlib import Path
from tithe.settings import ScoreSettings
from tithe.engine.store import store
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache, EngineLoader
from tithe.run.method import set_up
from tithe.run.score import make_runner

store.FLUSH_SECONDS = -1  # after every batch
settings = ScoreSettings(dataset="starter", model="pocket", scorer=("ifd",), template="alpaca", limit=12)
folder = Path(sys.argv[1])
setup, reporter = set_up(settings, folder=folder), Reporter()
load = EngineLoader(EngineCache(reporter), settings, setup.source.dataset, setup.model, folder)
runner = make_runner(setup, folder, load, reporter)
assert sum(len(window.scores) for window in runner.run(setup.source.dataset)) == 12 and runner.work.passes == 24
assert list(folder.rglob("part-*.parquet"))
print(json.dumps([name for name in ("pandas", "datasets", "sklearn", "faiss") if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
