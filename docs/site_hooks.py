"""Put pages from outside of `docs/` on the site, and lead links there: in the repository they are relative paths.

A link to a file that is no page (a table of numbers, say) leads to a copy of it on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # file of the repository -> page of the site
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SKILL.md": "skill.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/LOG.md": "benchmarks-log.md",
    "src/tithe/pocket/model/README.md": "pocket.md",
}
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)]*)?(\))")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside, and what any page links to."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=without_front((ROOT / source).read_text(encoding="utf-8"))))
    for file in files.documentation_pages():
        for found in LINK.finditer(file.content_string):
            target = in_repository(file.src_uri, found[2])
            name = place_on_site(target)
            if (ROOT / target).is_file() and files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where their files are on the site; those in blocks of code are none."""
    here = page.file.src_uri

    def led(found: re.Match[str]) -> str:
        target = in_repository(here, found[2])
        if "://" in found[2] or not (ROOT / target).exists():
            return found[0]  # mkdocs warns of what is not there
        way = posixpath.relpath(place_on_site(target), posixpath.dirname(here) or ".")
        return f"{found[1]}{way}{found[3] or ''}{found[4]}"

    parts = FENCED.split(markdown)
    return "".join(part if FENCED.fullmatch(part) else LINK.sub(led, part) for part in parts)


def without_front(text: str) -> str:
    """Leave out the front matter, which is for assistants."""
    return FRONT.sub("", text)


def in_repository(page: str, link: str) -> str:
    """Return the file of the repository that a page of the site links to."""
    sources = {site: source for source, site in PAGES.items()}
    folder = posixpath.dirname(sources.get(page, f"docs/{page}"))
    return posixpath.normpath(posixpath.join(folder, link))


def place_on_site(source: str) -> str:
    """Return where a file of the repository is on the site."""
    return PAGES.get(source) or (source.removeprefix("docs/") if source.startswith("docs/") else f"files/{source}")
