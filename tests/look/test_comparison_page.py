"""The page of a comparison in a real browser: points, list, categories, and text that stays text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.look.browser import chromium
from tests.look.small_run import alpaca, write_run
from tests.look.test_page import HOSTILE, Opened
from tithe.look.compare_runs import compare

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 records whose second score has the first and the last record exchanged, and a third that is reversed."""
    folder = tmp_path_factory.mktemp("compare")
    first: list[float | None] = [float(i) for i in range(20)]
    second = [first[-1], *first[1:-1], first[0]]
    run = write_run(folder, alpaca(20), {"ifd": first, "other": second, "third": first[::-1]}, None)
    compare([run], within="kind", output=folder / "compare.html")
    return folder / "compare.html"


@pytest.fixture
def opened(browser: Any, page: Path) -> Iterator[Opened]:
    found = Opened(browser, page)
    yield found
    found.page.close()
    assert found.said == []


def test_the_list_begins_with_what_differs_most(opened: Opened) -> None:
    assert opened.number == "20 of 20 shown"
    assert opened.column(0)[:3] == ["-19", "+19", "0"] and opened.column(1)[:2] == ["20", "1"]
    opened.page.click("#head button >> nth=1")
    assert opened.column(1) == [str(i) for i in range(1, 21)]
    opened.page.select_option("#pair", "1")  # ifd and third
    assert opened.column(1) == [str(i) for i in range(1, 21)] and opened.column(2) == [str(i) for i in range(20, 0, -1)]
    assert "-1.00" in opened.right and "Do they agree?" in opened.right


def test_categories_search_and_keys(opened: Opened) -> None:
    opened.page.select_option("#category", label="b")
    assert opened.number == "10 of 20 shown"
    opened.page.fill("#search", "number 19")
    assert opened.number == "1 of 20 shown"
    opened.page.keyboard.press("Escape")
    opened.page.keyboard.press("j")
    assert "Record 19" in opened.right and "rank in ifd\t1 of 20" in opened.right and "kind\tb" in opened.right
    assert "Say the number 19." in opened.right
    opened.page.click("#home")
    assert "By kind" in opened.right


def test_a_click_on_a_point_opens_its_record(opened: Opened) -> None:
    box = opened.page.query_selector("#canvas").bounding_box()
    # Rank 1 in the first and 20 in the second: right at the left edge, at the bottom.
    opened.page.mouse.click(box["x"] + 14, box["y"] + 260 - 14)
    assert "Record 19" in opened.right
    opened.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 30)  # no point is near
    assert "Record 19" in opened.right


def test_hostile_text_stays_text(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "a<b>'&\""
    folder.mkdir()
    records = [
        {"instruction": text, "input": text, "output": f"{text} {i}", text: text, "kind": text}
        for i, text in enumerate(HOSTILE)
    ]
    values: list[float | None] = [1.0, 2.0, 3.0, 4.0, 5.0]
    run = write_run(folder, records, {"ifd": values, "other": values[::-1]}, None)
    compare([run], within="kind", output=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("<script") == text.count("</script>") == 2
    found = Opened(browser, tmp_path / "page.html")
    for _ in HOSTILE:
        found.page.keyboard.press("ArrowDown")
        assert found.page.query_selector("#right img, #right script, #right svg") is None
    assert found.page.title() != "broken" and found.said == []
    found.page.close()
