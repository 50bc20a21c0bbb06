"""Judging end to end, against a real server on this machine that plays all kinds of judges."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import child, read_jsonl, write_jsonl
from tests.lab.endpoint.server import KEY, Played, reply, serve
from tithe.errors import DataError, OutputError, SettingsError
from tithe.lab.endpoint import client
from tithe.lab.endpoint.client import REFUSED
from tithe.lab.judge.judge_loop import REMINDER
from tithe.lab.judge.pairwise import JudgeResult, compare, tally
from tithe.lab.judge.prompt_answers import answer
from tithe.lab.judge.settings import AnswerSettings, JudgeSettings

REMIND = REMINDER.split("{")[0].strip()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TITHE_API_KEY", raising=False)


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """Ten prompts; A is better at the first six, B at the next three, and of the last both say the same."""
    a, b = [], []
    for i in range(10):
        good, poor = {"response": f"good answer {i}"}, {"response": f"poor answer {i}"}
        asked = {"prompt": f"Question {i}?"}
        a.append(asked | (good if i < 6 or i == 9 else poor))
        b.append(asked | (poor if i < 6 else good))
    return write_jsonl(tmp_path / "a.jsonl", a), write_jsonl(tmp_path / "b.jsonl", b)


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """Both answers as the judge sees them."""
    text = body["messages"][-1]["content"]
    first, second = (text.split(f"<<<ANSWER {k}\n")[1].split(f"\nANSWER {k}>>>")[0] for k in (1, 2))
    return first, second


def fair(number: int, body: dict[str, Any]) -> Any:
    first, second = (one.startswith("good") for one in shown(body))
    return reply(f"{5 + 3 * first} {5 + 3 * second}\nbecause")


def settings(played: Played, **more: Any) -> JudgeSettings:
    return JudgeSettings.of({"judge": played.url, "judge_model": "judge-1", **more})


def judged(
    sides: tuple[Path, Path], say: Callable[[int, dict[str, Any]], Any], **more: Any
) -> tuple[JudgeResult, Played]:
    with serve(say) as played:
        return compare(settings(played, **more), *sides, sides[0].with_name("r.jsonl")), played


def test_a_judge_that_is_consistent(sides: tuple[Path, Path]) -> None:
    result, played = judged(sides, fair)
    assert (result.tally.win, result.tally.tie, result.tally.loss, result.tally.no_verdict) == (6, 1, 3, 0)
    assert result.tally.win_rate == 1.3 and result.tally.orders == {"agree": 10}
    assert len(played.asked) == 18  # both orders of nine; the tenth pair has the same answer twice
    assert {(body["model"], body["temperature"]) for body in played.asked} == {("judge-1", 0.0)}
    firsts = [shown(body)[0] for body in played.asked]
    assert sorted(firsts) == sorted([f"{kind} answer {i}" for i in range(9) for kind in ("good", "poor")])
    assert result.measured.metric == "judge a" and result.measured.values.tolist() == [1.0] * 6 + [-1.0] * 3 + [0.0]
    rows = read_jsonl(sides[0].with_name("r.jsonl"))
    assert [row["verdict"] for row in rows] == ["win"] * 6 + ["loss"] * 3 + ["tie"]
    assert rows[0]["swapped"] == {"a": 8.0, "b": 5.0, "reply": "5 8\nbecause", "attempts": 1}
    assert tally(sides[0].with_name("r.jsonl")) == result.tally
    record = json.loads((sides[0].with_name("r.tithe") / "run.json").read_text())
    assert record["tally"]["win"] == 6 and record["counts"]["same_answer"] == 1 and record["judge"]["replies"] == 18


def test_the_mirror_image(sides: tuple[Path, Path]) -> None:
    result, _ = judged((sides[1], sides[0]), fair)
    assert (result.tally.win, result.tally.tie, result.tally.loss) == (3, 1, 6)


@pytest.mark.parametrize(("said", "side"), [("9 4", "first"), ("4 9", "second")])
def test_a_judge_that_goes_by_the_order_alone_gives_ties(sides: tuple[Path, Path], said: str, side: str) -> None:
    result, _ = judged(sides, lambda number, body: reply(said))
    assert (result.tally.win, result.tally.tie, result.tally.loss) == (0, 10, 0)
    assert result.tally.orders == {side: 9, "agree": 1}


def test_a_reply_without_a_verdict_is_asked_for_again(sides: tuple[Path, Path]) -> None:
    def say(number: int, body: dict[str, Any]) -> Any:
        return fair(number, body) if REMIND in body["messages"][-1]["content"] else reply("Answer 1 beats answer 2.")

    result, played = judged(sides, say)
    assert (result.tally.win, result.tally.loss, result.tally.no_verdict) == (6, 3, 0) and len(played.asked) == 36
    bodies = {json.dumps(body, sort_keys=True) for body in played.asked}
    assert len(bodies) == 36 and len({body["seed"] for body in played.asked}) == 36
    assert read_jsonl(sides[0].with_name("r.jsonl"))[0]["given"]["attempts"] == 2


def test_what_stays_without_a_verdict_is_listed(sides: tuple[Path, Path]) -> None:
    def say(number: int, body: dict[str, Any]) -> Any:
        if any("answer 2" in one for one in shown(body)):
            return reply("I would rather not.")
        if "poor answer 4" in shown(body)[0]:  # one order alone
            return reply("85 90")
        return fair(number, body)

    result, played = judged(sides, say, attempts=2)
    assert (result.tally.win, result.tally.tie, result.tally.loss, result.tally.no_verdict) == (4, 1, 3, 2)
    assert sum(result.tally.why.values()) == 2 and len(result.measured.items) == 8
    assert set(result.measured.problems.values()) == set(result.tally.why)
    left = read_jsonl(sides[0].with_name("r.tithe") / "dropped.jsonl")
    assert [one["where"].rpartition(":")[2] for one in left] == ["3", "5"]
    assert left[0]["reason"] == "no verdict: no line of the reply holds two numbers and nothing else"
    assert left[1]["reason"] == "no verdict: scores of 85 and 90: they must be from 1 to 10"
    row = read_jsonl(sides[0].with_name("r.jsonl"))[2]
    assert row["verdict"] == "no verdict" and row["given"]["reply"] == "I would rather not."
    assert len(played.asked) == 18 + 3


def test_a_judge_that_talks_nonsense(sides: tuple[Path, Path]) -> None:
    """The pair of equal answers is a tie whoever judges, and saves nobody."""
    with serve(lambda number, body: reply("banana")) as played, pytest.raises(DataError) as caught:
        compare(settings(played), *sides, sides[0].with_name("r.jsonl"))
    message, folder = str(caught.value), sides[0].with_name("r.tithe")
    assert "`judge-1` gave no verdict on any of 9 pairs: 18 reviews of up to 3 attempts, 18 with a reply" in message
    assert "`banana`" in message and str(folder) in (caught.value.hint or "")
    assert len(played.asked) == 54 and not sides[0].with_name("r.jsonl").exists()
    kept = [line for part in folder.rglob("part-*.jsonl") for line in read_jsonl(part)]
    assert [line["text"] for line in kept] == ["banana"] * 54
    assert len(read_jsonl(folder / "dropped.jsonl")) == 9


def test_faults_on_the_way(sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {0: (429, {}, {"Retry-After": "0.05"}), 3: "half", 5: "cut", 7: (503, b"busy", {}), 9: (200, b"{", {})}
    monkeypatch.setattr(client.Client.__init__, "__defaults__", (120.0, 5, 0.01, 8))
    result, played = judged(sides, lambda number, body: faults.get(number) or fair(number, body), concurrency=2)
    assert (result.tally.win, result.tally.loss, result.tally.no_verdict) == (6, 3, 0)
    assert len(played.asked) == 18 + len(faults) and result.record["judge"]["requests_tried_again"] == len(faults)


def test_a_request_that_is_refused_is_no_tie(sides: tuple[Path, Path]) -> None:
    def say(number: int, body: dict[str, Any]) -> Any:
        return (400, {"error": {"message": "filtered"}}, {}) if "answer 7" in shown(body)[0] else fair(number, body)

    output = sides[0].with_name("r.jsonl")
    with serve(say) as played:
        result = compare(settings(played), *sides, output)
        assert (result.tally.loss, result.tally.no_verdict) == (2, 1) and len(played.asked) == 18
        assert result.tally.why == {"HTTP 400, filtered": 1}
        played.say = fair  # the next run asks for what is missing, and for nothing else
        again = compare(settings(played), *sides, output, overwrite=True)
        assert (again.tally.loss, again.tally.no_verdict) == (3, 0) and len(played.asked) == 20
        assert again.record["judge"]["reused"] == 16


def test_nothing_stale(sides: tuple[Path, Path]) -> None:
    output = sides[0].with_name("r.jsonl")
    with serve(fair) as played:
        compare(settings(played), *sides, output)
        with pytest.raises(OutputError, match="exists"):
            compare(settings(played), *sides, output)
        before = output.read_bytes()
        compare(settings(played), *sides, output, overwrite=True)
        assert len(played.asked) == 18 and output.read_bytes() == before
        rows = read_jsonl(sides[1])
        rows[0]["response"] = "good answer, too"
        write_jsonl(sides[1], rows)
        compare(settings(played), *sides, output, overwrite=True)
        assert len(played.asked) == 20  # the pair that changed, in both orders
        compare(settings(played, max_new_tokens=99), *sides, output, overwrite=True)
        assert len(played.asked) == 38
        compare(settings(played, judge_model="judge-2"), *sides, output, overwrite=True)
        assert len(played.asked) == 56
        compare(settings(played, temperature=0.5), *sides, output, overwrite=True)
        assert len(played.asked) == 74


def test_a_server_that_goes_away_is_paid_once(sides: tuple[Path, Path]) -> None:
    output = sides[0].with_name("r.jsonl")
    with serve(lambda n, body: fair(n, body) if n < 7 else (404, {}, {})) as played:
        with pytest.raises(Exception, match="no such page or model"):
            compare(settings(played, concurrency=1), *sides, output)
        assert not output.exists()
        played.say = fair
        result = compare(settings(played, concurrency=1), *sides, output)
        assert result.record["judge"]["reused"] == 7 and len(played.asked) == 7 + REFUSED + 11


KILLED = """
import sys
from pathlib import Path
from tithe.lab.judge.pairwise import compare
from tithe.lab.judge.settings import JudgeSettings
url, a, b, out = sys.argv[1:]
settings = JudgeSettings.of({"judge": url, "judge_model": "judge-1", "concurrency": 1})
compare(settings, Path(a), Path(b), Path(out))
"""


@pytest.mark.slow
def test_killed_and_run_again(sides: tuple[Path, Path]) -> None:
    output = sides[0].with_name("r.jsonl")

    def slowly(number: int, body: dict[str, Any]) -> Any:
        time.sleep(0.2)
        return fair(number, body)

    with serve(slowly) as played:
        process = child(KILLED, played.url, *sides, output)
        end = time.monotonic() + 60
        while len(played.asked) < 7 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
        process.communicate()
        asked = len(played.asked)
        assert 7 <= asked < 18 and not output.exists()
        result = compare(settings(played, concurrency=1), *sides, output)
        assert (result.tally.win, result.tally.loss) == (6, 3)
        # Every reply that had come is kept: the one under way, and at most one that was being written, are asked again.
        assert result.record["judge"]["reused"] >= asked - 2 and len(played.asked) <= 18 + 2


def test_the_key_is_nowhere(sides: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITHE_API_KEY", KEY)
    with serve(fair, key=KEY) as played:
        compare(settings(played), *sides, sides[0].with_name("r.jsonl"))
    texts = [path.read_text() for path in sides[0].parent.rglob("*") if path.is_file()]
    assert len(texts) > 5 and not any(KEY in text for text in texts)


# --------------------------------------------------------------------------------------------------------- matching


def test_what_has_no_partner_is_named(sides: tuple[Path, Path]) -> None:
    a, b = read_jsonl(sides[0]), read_jsonl(sides[1])
    other = [{"instruction": row["prompt"] + "\n", "output": row["response"]} for row in b[3:]]
    write_jsonl(sides[1], [*other, {"prompt": "More?", "response": "x"}, {"prompt": "No answer"}])
    write_jsonl(sides[0], [*a, {"prompt": "Question 4?", "response": "once more"}])
    result, _ = judged(sides, fair)
    counts, shown = result.record["counts"], ("records", "answers", "bad_rows", "unmatched")
    assert {side: [counts[side][name] for name in shown] for side in "ab"} == {"a": [11, 11, 0, 4], "b": [9, 8, 1, 1]}
    assert (counts["pairs"], counts["same_answer"]) == (7, 1)
    left = {
        one["where"].rpartition("/")[2]: one["reason"]
        for one in read_jsonl(sides[0].with_name("r.tithe") / "dropped.jsonl")
    }
    assert set(left) == {"a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "a.jsonl:11", "b.jsonl:8", "b.jsonl:9"}
    assert "has no answer to this prompt" in left["a.jsonl:11"] and "no answer: there is `prompt`" in left["b.jsonl:9"]


def test_nothing_in_common(sides: tuple[Path, Path]) -> None:
    write_jsonl(sides[1], [{"prompt": "Something else", "response": "x"}])
    with pytest.raises(DataError, match="none of the 10 prompts") as caught:
        judged(sides, fair)
    assert "`Question 0?` and `Something else`" in (caught.value.hint or "")


def test_an_empty_answer_is_judged(sides: tuple[Path, Path]) -> None:
    write_jsonl(sides[1], [{**row, "response": " "} for row in read_jsonl(sides[1])])
    result, played = judged(sides, fair)
    assert result.tally.n == 10 and any("(no answer was given)" in one for one in shown(played.asked[0]))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"judge": "http://localhost:1/v1"}, "no model is given for the judge"),
        ({"judge": "m", "judge_model": "x"}, "runs here"),
        ({"judge": "m", "concurrency": 3}, "it is only used with `endpoint`"),
        ({"judge": "http://localhost:1/v1", "judge_model": "x", "dtype": "fp32"}, "an endpoint does that itself"),
        ({"judge": "m", "attempts": 0}, "at least 1"),
        ({"judge": "m", "level": 95}, "between 0 and 1"),
        ({"judge": "m", "temprature": 0}, "unknown setting `temprature`"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        JudgeSettings.of(given)


def test_reviews_have_their_suffix(sides: tuple[Path, Path]) -> None:
    with pytest.raises(SettingsError, match=r"not to `.*r\.json`"):
        compare(JudgeSettings.of({"judge": "m"}), *sides, sides[0].with_name("r.json"))
    with pytest.raises(OutputError, match="is the data set itself"):
        compare(JudgeSettings.of({"judge": "m"}), *sides, sides[0], overwrite=True)


# ---------------------------------------------------------------------------------------------------------- answers


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "prompts", "begins"),
    [
        ("vicuna", 80, "How can I improve my time management"),
        ("koala", 180, "Can you list the top 20 films"),
        pytest.param("wizardlm", 218, "If a car travels 120 miles", marks=pytest.mark.thorough),
        pytest.param("sinstruct", 252, "The sentence you are given might be too wordy", marks=pytest.mark.thorough),
        pytest.param("lima", 300, "I'm writing a NeurIPS paper", marks=pytest.mark.thorough),
    ],
)
def test_the_prompt_sets_of_the_papers(shared: Path, tmp_path: Path, name: str, prompts: int, begins: str) -> None:
    path, sides = shared / "data" / "eval" / f"judge_{name}.jsonl", (tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    for side, kind in zip(sides, ("good", "poor"), strict=True):
        with serve(lambda number, body, kind=kind: reply(f"{kind}: {body['messages'][-1]['content'][:20]}")) as played:
            ask = {"prompts": str(path), "model": "m", "endpoint": played.url, "concurrency": 4}
            record = answer(AnswerSettings.of(ask), side).record
        assert record["counts"]["prompts"] == record["counts"]["answers"] == prompts == len(played.asked)
    assert played.asked and any(body["messages"][-1]["content"].startswith(begins) for body in played.asked)
    assert [len(read_jsonl(side)) for side in sides] == [prompts] * 2
    result, played = judged(sides, fair)
    assert (result.tally.win, result.tally.n) == (prompts, prompts) and len(played.asked) == 2 * prompts


@pytest.mark.slow
def test_answers_of_a_model_that_runs_here(tmp_path: Path, model_dir: Path) -> None:
    asked = [{"text": f"Say {i}", "question_id": i} for i in range(5)]
    path = write_jsonl(tmp_path / "p.jsonl", [*asked, {"nothing": "here"}])
    given = {"prompts": str(path), "model": str(model_dir), "max_new_tokens": 6, "dtype": "fp32"}
    first = answer(AnswerSettings.of(given), tmp_path / "a.jsonl")
    rows = read_jsonl(tmp_path / "a.jsonl")
    assert [row["prompt"] for row in rows] == [f"Say {i}" for i in range(5)]
    assert all(isinstance(row["response"], str) and row["model"] == str(model_dir) for row in rows)
    assert list(first.record["counts"]["bad_rows"].values()) == [1]
    before = (tmp_path / "a.jsonl").read_bytes()
    again = answer(AnswerSettings.of(given | {"batch_tokens": 40}), tmp_path / "a.jsonl", overwrite=True)
    assert again.record["model"]["reused"] == 5 and (tmp_path / "a.jsonl").read_bytes() == before
    other = answer(AnswerSettings.of(given | {"temperature": 1.0}), tmp_path / "b.jsonl")
    assert other.record["model"]["reused"] == 0
    with pytest.raises(DataError, match="gave no verdict on any of"):
        judge = {"judge": str(model_dir), "max_new_tokens": 5, "attempts": 2, "dtype": "fp32"}
        compare(JudgeSettings.of(judge), tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "r.jsonl")


def test_prompts_in_a_dialogue_come_back(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    path = write_jsonl(tmp_path / "p.jsonl", [{"messages": turns}, {"instruction": "i", "input": "j"}])
    with serve() as played:
        for name in ("a", "b"):
            ask = {"prompts": str(path), "model": name, "endpoint": played.url, "seed": 1}
            answer(AnswerSettings.of(ask), tmp_path / f"{name}.jsonl")
    assert played.asked[0]["messages"] in (turns, [{"role": "user", "content": "i\nj"}])
    result, _ = judged((tmp_path / "a.jsonl", tmp_path / "b.jsonl"), fair)
    assert result.record["counts"]["pairs"] == 2 and result.record["counts"]["same_answer"] == 2
