"""The page in a real browser: what it shows, how it is used, and that no text of the data becomes markup."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import tithe
from tests.look.browser import chromium
from tests.look.small_run import alpaca, write_run, write_tokens
from tithe.errors import TitheError
from tithe.look import look

pytestmark = pytest.mark.slow

HOSTILE = (
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "\"'><svg/onload=document.title='broken'>",
    "{{ 7 * 7 }} ${alert(1)} \u202e backwards \u0000 \u2028",
    "]]> --> javascript:document.title='broken'",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


class Opened:
    """A page in the browser; faults of its script fail the test."""

    def __init__(self, browser: Any, path: Path, **how: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1200, "height": 800}, **how)
        self.said: list[str] = []
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("request", lambda request: self.said.append(request.url) if request.url[:5] != "file:" else None)
        self.page.goto(path.absolute().as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def rows(self) -> list[list[str]]:
        found = []
        for row in self.page.query_selector_all(".row"):
            found.append(
                (int(row.get_attribute("data-place")), [c.inner_text() for c in row.query_selector_all(".cell")])
            )
        tops = self.page.evaluate("[...document.querySelectorAll('.row')].map((r) => parseFloat(r.style.top))")
        return [cells for _, (_, cells) in sorted(zip(tops, found, strict=True))]

    def column(self, place: int) -> list[str]:
        return [cells[place] for cells in self.rows()]

    @property
    def number(self) -> str:
        return str(self.page.inner_text("#number"))

    @property
    def right(self) -> str:
        return str(self.page.inner_text("#right"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 records, the 5 with the highest score kept; the tokens of one."""
    folder = tmp_path_factory.mktemp("look")
    scores: list[float | None] = [float(i) / 10 for i in range(19)]
    scores.append(None)
    dropped: list[str | None] = ["below the budget"] * 14 + [None] * 5 + ["no score"]
    other = [float((i * 7) % 20) for i in range(20)]
    made = write_run(
        folder,
        alpaca(20),
        {"ifd": scores, "length": other},
        dropped,
        model={"name": "pocket", "folder": "-"},
    )
    ids = pq.read_table(made / "scores.parquet").column("id").to_pylist()
    rows = [(ids[18], "given", [40, 41, 42], [0.5, 3.0, 1.0]), (ids[18], "alone", [41, 42], [1.0, 4.0])]
    write_tokens(made, rows)
    look(made)
    return made


@pytest.fixture
def opened(browser: Any, run: Path) -> Iterator[Opened]:
    found = Opened(browser, run / "look.html")
    yield found
    found.page.close()
    assert found.said == []


def test_the_list_is_sorted_by_the_score_and_by_any_column(opened: Opened) -> None:
    assert opened.column(0) == [f"{i / 10:g}" for i in range(18, -1, -1)] + ["–"]
    opened.page.click("#head button >> nth=0")
    assert opened.column(0) == [f"{i / 10:g}" for i in range(19)] + ["–"]  # what has no score is last either way
    opened.page.click("#head button >> nth=1")
    assert opened.column(1) == [str(i) for i in range(19, -1, -1)]
    assert opened.number == "20 of 20 shown"


def test_search_and_reasons_filter_and_counts_add_up(opened: Opened) -> None:
    opened.page.fill("#search", "number 1")
    assert opened.number == "11 of 20 shown"  # 1 and 10 to 19
    opened.page.select_option("#reason", "kept")
    assert opened.number == "5 of 20 shown"
    opened.page.fill("#search", "")
    options = opened.page.eval_on_selector_all("#reason option", "all => all.map((one) => one.textContent)")
    assert options == ["kept and dropped", "kept (5)", "dropped: below the budget (14)", "dropped: no score (1)"]
    opened.page.select_option("#reason", "2")
    assert opened.number == "1 of 20 shown" and opened.column(0) == ["–"]
    for line in ("kept\t5", "dropped: below the budget\t14", "dropped: no score\t1", "all\t20"):
        assert line in opened.right


def test_a_click_on_the_histogram_shows_the_records_around_it(opened: Opened) -> None:
    bars = opened.page.evaluate(
        "['all', 'kept'].map((name) => [...document.querySelectorAll('#plot rect.' + name)]"
        ".map((one) => parseFloat(one.getAttribute('height'))))"
    )
    assert [sum(height > 0 for height in one) for one in bars] == [19, 5]
    box = opened.page.query_selector("#svg").bounding_box()
    opened.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    assert opened.column(0) == ["0.9"]
    opened.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 20)
    assert opened.number == "20 of 20 shown"


def test_keys_move_through_the_list(opened: Opened) -> None:
    opened.page.keyboard.press("ArrowDown")
    assert "record 18," in opened.right and "kept" in opened.right
    opened.page.keyboard.press("j")
    assert "record 17," in opened.right
    opened.page.keyboard.press("ArrowUp")
    assert "record 18," in opened.right
    opened.page.keyboard.press("/")
    opened.page.keyboard.type("number 3")
    assert opened.number == "1 of 20 shown"
    opened.page.keyboard.press("Escape")
    assert "This run" in opened.right


def test_tokens_are_coloured_by_what_the_prompt_does_to_them(opened: Opened) -> None:
    opened.page.keyboard.press("ArrowDown")

    def colours() -> list[str]:
        found: list[str] = opened.page.eval_on_selector_all(
            ".tokens span", "all => all.map((one) => getComputedStyle(one).backgroundColor)"
        )
        return found

    none, harder, easier = colours()  # unknown alone; 3.0 against 1.0; 1.0 against 4.0
    assert (
        none == "rgba(0, 0, 0, 0)" and harder.startswith("rgba(200, 80, 30") and easier.startswith("rgba(31, 95, 168")
    )
    title = opened.page.get_attribute(".tokens span >> nth=1", "title")
    assert title == "loss given the prompt 3, alone 1"
    opened.page.select_option("#colour", "given")
    assert all(one.startswith("rgba(200, 80, 30") for one in colours())


def test_scorers_are_compared(opened: Opened) -> None:
    assert "Do the scorers agree?" in opened.right and "100 % · 1.00" in opened.right
    # The five highest of `length` are those with (7 i) mod 20 of 15 to 19: i = 5, 8, 11, 14 and 17.
    assert "40 % · " in opened.right  # 14 and 17 are among 14 to 18


def test_dark_mode_has_dark_colours(browser: Any, run: Path) -> None:
    back = []
    for scheme in ("light", "dark"):
        found = Opened(browser, run / "look.html", color_scheme=scheme)
        back.append(found.page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found.page.close()
    assert back == ["rgb(255, 255, 255)", "rgb(22, 24, 27)"]


def test_hostile_text_stays_text(browser: Any, tmp_path: Path) -> None:
    """In prompts, responses, columns and their names, reasons, and the name of the data set's folder."""
    folder = tmp_path / "a<b>'&\""
    folder.mkdir()
    records = [
        {"instruction": text, "input": text, "output": f"{text} {i}", text: text, "kind": text}
        for i, text in enumerate(HOSTILE)
    ]
    made = write_run(folder, records, {"ifd": [1.0, 2.0, 3.0, 4.0, 5.0]}, [*HOSTILE[:4], None])
    page = look(made).path
    text = page.read_text()
    assert (
        text.count("<script") == text.count("</script>") == 2 and "onerror" not in text.partition('id="data"')[2][:99]
    )
    found = Opened(browser, page)
    for _ in HOSTILE:
        found.page.keyboard.press("ArrowDown")
        assert found.page.query_selector("#right img, #right script, #right svg") is None
    assert HOSTILE[0] in found.right and found.page.title() != "broken" and found.said == []
    assert found.page.eval_on_selector_all("#right pre", "all => all.length") == 2
    found.page.close()


def test_a_real_run_with_the_bundled_model(browser: Any, tmp_path: Path) -> None:
    """From the command to a token: losses that the run has kept, and those that the page's command reads are equal."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in alpaca(12)))
    how = {"scorer": ("ifd", "length"), "by": "ifd", "model": "pocket", "dtype": "fp32", "device": "cpu", "keep": 3}
    tithe.select(data, run_dir=tmp_path / "kept.tithe", per_token=True, **how)
    tithe.select(data, run_dir=tmp_path / "plain.tithe", gate_check=False, **how)
    made = [look(tmp_path / "kept.tithe"), look(tmp_path / "plain.tithe"), look(tmp_path / "plain.tithe", tokens=12)]
    assert [one.tokens for one in made] == [12, 0, 12]
    texts = []
    for one in (made[0], made[2]):
        found = Opened(browser, one.path)
        found.page.keyboard.press("ArrowDown")
        spans = found.page.eval_on_selector_all(".tokens span", "all => all.map((one) => [one.textContent, one.title])")
        texts.append(spans)
        assert "".join(text for text, _ in spans).strip().startswith("It is ") and found.said == []
        found.page.close()
    assert [text for text, _ in texts[0]] == [text for text, _ in texts[1]]
    numbers = [
        [float(word.strip(",")) for _, title in one for word in title.split() if word[0].isdigit()] for one in texts
    ]
    assert np.allclose(numbers[0], numbers[1], atol=0.011) and len(numbers[0]) > 6
    record = json.loads((tmp_path / "plain.tithe" / "run.json").read_text())
    record["model"]["fingerprint"] = "of another model"
    (tmp_path / "plain.tithe" / "run.json").write_text(json.dumps(record))
    with pytest.raises(TitheError, match="the model `pocket` has changed since the run"):
        look(tmp_path / "plain.tithe", tokens=12)
    assert not list((tmp_path / "plain.tithe").glob("tokens*"))  # a look changes nothing of the run


@pytest.mark.thorough
def test_fifteen_thousand_records(browser: Any, tmp_path: Path) -> None:
    records = [{**one, "output": one["output"] * 20} for one in alpaca(15_000)]
    scores: list[float | None] = np.random.default_rng(0).normal(size=15_000).tolist()
    made = write_run(tmp_path, records, {"ifd": scores}, [None if i % 20 == 0 else "below" for i in range(15_000)])
    page = look(made)
    assert page.size < 12e6 and page.records == 15_000
    found = Opened(browser, page.path)
    assert (
        found.number == "15,000 of 15,000 shown"
        and found.page.evaluate("document.querySelectorAll('.row').length") < 60
    )
    found.page.evaluate("document.getElementById('list').scrollTop = 26 * 7000")
    found.page.wait_for_function("document.querySelector('.row').style.top !== '0px'")
    assert found.column(0) == sorted(found.column(0), key=float, reverse=True)
    found.page.close()
