import contextlib
import subprocess
import sys
from importlib.metadata import entry_points

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tithe import plugins
from tithe.errors import ModelError, SettingsError
from tithe.selectors.base import Selector
from tithe.selectors.rank import Band, Stratified, Top

EVERYTHING = """
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Optional
from tithe.errors import ModelError, SettingsError
from tithe.selectors.rank import Ranked, Top

@dataclass(frozen=True)
class Everything(Top):
    "Keeps what it is told."
    name: ClassVar[str] = "everything"
    count: int = 1
    rate: float = 0.5
    on: bool = False
    title: str = ""
    mode: Literal["fast", "slow", 3] = "fast"
    limit: Optional[int] = None
    cap: float | None = 1.0
    both: int | str = 0
    table: dict[str, int] = field(default_factory=dict)
    made: int = field(init=False, default=4)

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("`count` is negative")
        if self.count > 99:
            raise ModelError("too many")

Other = Everything

class Bare:
    pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a distribution, as far as entry points are concerned."""

    def install(name, points, source=EVERYTHING, group="tithe.selectors"):
        home = tmp_path / name
        info = home / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{key} = {value}" for key, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        module = name.replace("-", "_")
        (home / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(home)

    return install


def test_built_ins_are_entry_points_and_go_by_their_own_name():
    for group, get in (("tithe.selectors", plugins.selector), ("tithe.scorers", plugins.scorer)):
        found = plugins.names(group)
        assert found == sorted(found) and "random" in found
        for name in found:
            assert get(name).name == name
    assert plugins.selector("top") is Top
    assert {"ifd", "superfiltering", "perplexity", "length", "random"} <= set(plugins.names(plugins.SCORERS))


def test_pyproject_and_installation_agree():
    assert {"top", "bottom", "band", "random", "stratified"} <= {
        point.name for point in entry_points(group="tithe.selectors") if point.value.startswith("tithe.")
    }


def test_a_foreign_selector_is_found_and_built(package):
    package("my-plugin", {"everything": "my_plugin:Everything"})
    assert "everything" in plugins.names("tithe.selectors")
    one = plugins.build_selector("everything(count=3, ties=last)")
    assert isinstance(one, Selector) and (one.count, one.ties) == (3, "last")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", {}),
        ("count=3", {"count": 3}),
        (" count = -0 , rate=1e-3 ", {"count": 0, "rate": 1e-3}),
        ("rate=2", {"rate": 2.0}),
        ("on=true", {"on": True}),
        ("on=No", {"on": False}),
        ("on=1", {"on": True}),
        ("title=a b", {"title": "a b"}),
        ("title='a, (b)=c', count=2", {"title": "a, (b)=c", "count": 2}),
        ('title="it\'s"', {"title": "it's"}),
        ("title=''", {"title": ""}),
        ("title=f(x, y)", {"title": "f(x, y)"}),
        ("mode=slow", {"mode": "slow"}),
        ("mode='slow'", {"mode": "slow"}),
        ("mode=3", {"mode": 3}),
        ("limit=5", {"limit": 5}),
        ("limit=none", {"limit": None}),
        ("cap=None", {"cap": None}),
        ("cap=0.25", {"cap": 0.25}),
        ("both=7", {"both": 7}),
        ("both=x", {"both": "x"}),
    ],
)
def test_settings_are_read_by_their_types(package, settings, expected):
    package("my-plugin", {"everything": "my_plugin:Everything"})
    one = plugins.build("tithe.selectors", f"everything({settings})")
    plain = plugins.build("tithe.selectors", "everything")
    assert one == type(plain)(**expected)
    assert all(type(getattr(one, key)) is type(value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        ("count=x", "`everything`: `count` is a whole number, not `x`", None),
        ("count=1.5", "`count` is a whole number, not `1.5`", None),
        ("rate=fast", "`rate` is a number, not `fast`", None),
        ("on=maybe", "`on` is `true` or `false`, not `maybe`", None),
        ("mode=medium", "`mode` is `fast` or `slow` or `3`, not `medium`", None),
        ("limit=few", "`limit` is a whole number or `none`, not `few`", None),
        ("table=1", "`table` is a .* cannot be given as text, not `1`", None),
        ("made=1", "`everything` has no setting `made`", "did you mean"),
        ("name=1", "`everything` has no setting `name`", ""),
        ("cuont=1", "`everything` has no setting `cuont`", "did you mean `count`?"),
        ("3", "has `3` where `key=value` is expected", None),
        ("count=1, count=2", "has `count` twice", None),
        ("count=1,", "has `` where", None),
        ("count=-1", "`count` is negative", None),
    ],
)
def test_wrong_settings_are_refused(package, settings, message, hint):
    package("my-plugin", {"everything": "my_plugin:Everything"})
    with pytest.raises(SettingsError, match=message) as caught:
        plugins.build("tithe.selectors", f"everything({settings})")
    assert hint is None or hint in caught.value.hint


def test_an_error_of_ours_passes_as_it_is(package):
    package("my-plugin", {"everything": "my_plugin:Everything"})
    with pytest.raises(ModelError, match="too many"):
        plugins.build("tithe.selectors", "everything(count=100)")


def test_a_required_setting_is_named():
    with pytest.raises(SettingsError, match="`stratified` needs the setting `by`") as caught:
        plugins.build_selector("stratified")
    assert caught.value.hint == "`stratified(by=...)`"
    assert plugins.build_selector("stratified(by=source)") == Stratified("source")


@pytest.mark.parametrize("spec", ["", "()", "top(", "top)", "top(ties=first", "top(ties='first)", "top((ties=first)"])
def test_a_spec_that_cannot_be_read_is_refused(spec):
    with pytest.raises(SettingsError):
        plugins.build_selector(spec)


def test_a_typo_is_suggested():
    with pytest.raises(SettingsError, match="no selector `bnad`") as caught:
        plugins.build_selector("bnad")
    assert caught.value.hint == "did you mean `band`?"
    with pytest.raises(SettingsError, match="no scorer `idf`") as caught:
        plugins.scorer("idf")
    assert caught.value.hint == "did you mean `ifd`?"


def test_a_clash_is_refused_and_names_both(package):
    package("one-package", {"best": "one_package:Everything"})
    package("two-package", {"best": "two_package:Everything"})
    with pytest.raises(SettingsError, match=r"`best` is claimed by two packages") as caught:
        plugins.selector("best")
    assert "`one-package`" in str(caught.value) and "`two-package`" in str(caught.value)


def test_a_built_in_name_cannot_be_taken(package):
    package("my-plugin", {"top": "my_plugin:Everything"})
    with pytest.raises(SettingsError, match=r"`top` is claimed by two packages") as caught:
        plugins.selector("top")
    assert "`tithe`" in str(caught.value) and "`my-plugin`" in str(caught.value)


def test_two_names_of_one_object_are_no_clash(package):
    package("one-package", {"best": "one_package:Everything"})
    package("two-package", {"best": "one_package:Other"})
    assert plugins.selector("best").__name__ == "Everything"


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def f(:", "SyntaxError"),
        ("x = 1", "AttributeError"),
    ],
)
def test_what_cannot_be_imported_names_package_and_cause(package, source, cause):
    package("my-plugin", {"everything": "my_plugin:Everything"}, source)
    with pytest.raises(SettingsError, match=cause) as caught:
        plugins.selector("everything")
    assert "`everything` of `my-plugin`" in str(caught.value)
    assert "everything" in plugins.names("tithe.selectors")  # a listing goes on


def test_a_class_of_another_kind_is_refused(package):
    package("my-plugin", {"bare": "my_plugin:Bare", "text": "my_plugin:__name__"})
    for name in "bare", "text":
        with pytest.raises(SettingsError, match=r"`my-plugin` is not a dataclass derived from `tithe.selectors.base"):
            plugins.selector(name)
    with pytest.raises(SettingsError, match="no scorer `bare`"):
        plugins.scorer("bare")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("ifd", ["ifd"]),
        ("ifd,length", ["ifd", "length"]),
        (" ifd , superfiltering(alpha=1, b=2),length ", ["ifd", "superfiltering(alpha=1, b=2)", "length"]),
        ("a(x=(1,2)),b(y=[3,4])", ["a(x=(1,2))", "b(y=[3,4])"]),
        ("a(x='),'),b", ["a(x='),')", "b"]),
    ],
)
def test_specs_are_split_outside_brackets(text, parts):
    assert plugins.split_specs(text) == parts


@pytest.mark.parametrize("text", ["", ",", "ifd,", ",ifd", "ifd,,length", "a(b", "a)b", "a('x)", "a)(b"])
def test_a_list_that_cannot_be_split_is_refused(text):
    with pytest.raises(SettingsError):
        plugins.split_specs(text)


@given(st.lists(st.sampled_from(["ifd", "band(low=0.1, high=1)", "a(b='x,y')", "c()"]), min_size=1))
def test_split_undoes_join(specs):
    assert plugins.split_specs(", ".join(specs)) == specs


@given(st.text(alphabet="band(low=0.1,)'\" ", max_size=25))
def test_any_text_builds_or_is_a_settings_error(text):
    with contextlib.suppress(SettingsError):
        assert isinstance(plugins.build_selector(text), Selector)


def test_a_selector_prints_as_its_spec():
    assert plugins.build_selector(str(Band(0.1, 0.9))) == Band(0.1, 0.9)


def test_names_load_nothing():
    code = "import sys, tithe.plugins as p; p.names('tithe.scorers'); p.selector('top'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_settings_of_the_run_fill_what_a_spec_leaves_out():
    """Only what there is a field for is taken, and the spec wins."""
    from tithe.scorers.ifd import IFD
    from tithe.scorers.miwv import MIWV

    run = {"seed": 3, "encoder": "tfidf", "shots": 2}
    assert plugins.build_scorer("miwv", run) == MIWV(shots=2, encoder="tfidf")
    assert plugins.build_scorer("miwv(shots=1)", run) == MIWV(shots=1, encoder="tfidf")
    assert plugins.build_scorer("ifd", run) == IFD()
    assert plugins.build_selector("random", run).seed == 3
    assert plugins.build_selector("random(seed=5)", run).seed == 5
    assert plugins.build_selector("stratified(by=seed)", run).seed == 3  # a value that is called so is no setting
