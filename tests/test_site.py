"""The documentation as a site: every page in the navigation, every link inside, nothing from another server."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from tests.look.browser import chromium

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
BUILDS = all(importlib.util.find_spec(name) for name in ("mkdocs", "material"))
needs_mkdocs = pytest.mark.skipif(not BUILDS, reason="mkdocs-material is in the extra `docs`")


def settings() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def hooks() -> Any:
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def named(nav: Any) -> Iterator[str]:
    """The pages of a navigation, or of a part of it."""
    if isinstance(nav, str):
        yield nav
    for inner in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from named(inner)


@needs_mkdocs
def test_every_page_is_in_the_navigation_once() -> None:
    found = list(named(settings()["nav"]))
    assert len(set(found)) == len(found), "a page stands in the navigation twice"
    outside = set(hooks().PAGES.values())
    missing = sorted((PAGES | outside) - set(found))
    assert not missing, f"add to `nav` in mkdocs.yml: {missing}"
    assert set(found) == PAGES | outside, "`nav` in mkdocs.yml names pages that are not there"
    assert not PAGES & outside, "a page of docs/ has the name of one from outside"


def test_every_page_is_in_the_index() -> None:
    """Whoever reads the documents in the repository finds them there."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    missing = sorted(page for page in PAGES - {"index.md"} if f"]({page})" not in index)
    assert not missing, f"add to docs/index.md: {missing}"


def test_nothing_is_asked_of_another_server() -> None:
    found = settings()
    assert found["theme"]["font"] is False and "offline" in found["plugins"]
    assert [script for script in found["extra"]["polyfills"] if not (DOCS / script).is_file()] == []
    assert any("iframe-worker" in script for script in found["extra"]["polyfills"])  # else `offline` loads its own


@needs_mkdocs
@pytest.mark.parametrize(
    ("page", "link", "source", "place"),
    [
        ("gate.md", "scores.md", "docs/scores.md", "scores.md"),
        ("gate.md", "../CHANGELOG.md", "CHANGELOG.md", "changelog.md"),
        ("results/dolly-pocket.md", "dolly-pocket.csv", "docs/results/dolly-pocket.csv", "results/dolly-pocket.csv"),
        ("readme.md", "docs/gate.md", "docs/gate.md", "gate.md"),
        ("readme.md", "LICENSE", "LICENSE", "files/LICENSE"),
        ("benchmarks.md", "LOG.md", "benchmarks/LOG.md", "benchmarks-log.md"),
    ],
)
def test_a_link_leads_to_the_same_file(page: str, link: str, source: str, place: str) -> None:
    made = hooks()
    assert made.in_repository(page, link) == source and made.place_on_site(source) == place


@needs_mkdocs
def test_links_in_blocks_of_code_stay() -> None:
    class Page:
        class file:
            src_uri = "readme.md"

    text = "[a](docs/gate.md#use-it)\n```text\n[a](docs/gate.md)\n```\n[b](https://x.y) [c](docs/nowhere.md)\n"
    expected = "[a](gate.md#use-it)\n```text\n[a](docs/gate.md)\n```\n[b](https://x.y) [c](docs/nowhere.md)\n"
    assert hooks().on_page_markdown(text, page=Page) == expected


def build(place: Path, config: Path) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place), "--config-file", str(config)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    return subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    done = build(place, ROOT / "mkdocs.yml")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("INFO")]
    assert not told, "\n".join(told)
    return place


class Addresses(HTMLParser):
    """The addresses that a page loads, those that it links to, and the names that can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads, self.links, self.names = list[str](), list[str](), set[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.names |= {value for key, value in attrs if key in ("id", "name") and value}
        if (address := found.get(LOADS.get(tag, ""))) and found.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(address)
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))


@pytest.mark.slow
@needs_mkdocs
def test_the_site_is_whole_and_stands_alone(site: Path) -> None:
    """Every link and anchor inside leads somewhere, and no page loads a script, style, font or image from outside."""
    pages = {path: Addresses(path) for path in site.rglob("*.html")}
    assert len(pages) >= len(PAGES) + len(hooks().PAGES)
    for page, found in pages.items():
        outside = [address for address in found.loads if urlsplit(address).netloc]
        assert not outside, f"{page.name} loads {outside}"
        for address in found.loads + found.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or page.name == "404.html":  # which is served under any address
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page.name}: {address}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].names, f"{page.name}: {address}"
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert "@import" not in styles and "url(http" not in styles


@pytest.mark.slow
@needs_mkdocs
def test_tables_and_code_are_not_left_as_text(site: Path) -> None:
    """What Markdown of the repository and of the site read differently shows as bars and backticks on a page."""
    for path in site.rglob("*.html"):
        text = plain(path)
        assert "|---" not in text and "```" not in text, path.name
        assert "<!--" not in text, path.name


def plain(page: Path) -> str:
    """The text of a page outside of code."""

    class Text(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.depth, self.parts = 0, list[str]()

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.depth += tag in ("code", "script", "style", "pre")

        def handle_endtag(self, tag: str) -> None:
            self.depth -= tag in ("code", "script", "style", "pre")

        def handle_data(self, data: str) -> None:
            if not self.depth:
                self.parts.append(data)

    found = Text()
    found.feed(page.read_text(encoding="utf-8"))
    return "".join(found.parts)


@pytest.mark.slow
@needs_mkdocs
def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """Strict means strict: a planted link to nowhere, a planted anchor, and a page that no navigation names."""
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# One\n\n[a](nowhere.md) [b](index.md#nothing)\n")
    (docs / "lost.md").write_text("# Two\n")
    found = settings() | {"nav": ["index.md"]}
    for key in ("hooks", "exclude_docs"):
        found.pop(key)
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(found))
    done = build(tmp_path / "made", tmp_path / "mkdocs.yml")
    assert done.returncode != 0
    for said in ("'nowhere.md'", "#nothing", "lost.md"):
        assert said in done.stderr, done.stderr


@pytest.mark.slow
@needs_mkdocs
def test_the_site_opens_from_disk_and_can_be_searched(site: Path) -> None:
    """Without a server and without a network, where browsers start no worker."""
    with chromium() as browser:
        page = browser.new_page()
        wrong, asked = list[str](), list[str]()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((site / "gate.html").as_uri())
        page.locator("input.md-search__input").first.fill("superfiltering")
        page.locator(".md-search-result__item").first.wait_for(timeout=60_000)
        assert "uperfiltering" in page.locator(".md-search-result").inner_text()
        assert not wrong, wrong
        assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in asked), asked
