"""Runs of words: planted ones are found, near misses are not, and a slow twin sees the same."""

from __future__ import annotations

import gzip
import json
import random
import re
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tithe.contamination import index as module
from tithe.contamination import index as word_rules
from tithe.contamination.index import Index, words
from tithe.contamination.items import Item, read_items
from tithe.errors import DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello,   World!", ["hello", "world"]),
        ("It's 3.5-ish", ["it", "s", "3", "5", "ish"]),
        ("ＦＵＬＬ ｗｉｄｔｈ", ["full", "width"]),  # NFKC
        ("ﬁne cafe\u0301", ["fine", "café"]),
        ("snake_case(x,y)\n\t# no", ["snake", "case", "x", "y", "no"]),
        ("日本語 ok", ["日", "本", "語", "ok"]),
        ("GROẞE Straße", ["große", "straße"]),
        ("हिन्दी में लिखा, है।", ["हिन्दी", "में", "लिखा", "है"]),  # vowel signs and viramas: Mc and Mn
        ("বাংলা தமிழ் ಕನ್ನಡ", ["বাংলা", "தமிழ்", "ಕನ್ನಡ"]),
        ("كِتَابٌ שָׁלוֹם", ["كِتَابٌ", "שָׁלוֹם"]),  # points
        ("كتـــاب", ["كتاب"]),  # lengthened
        ("ชื่อ ខ្មែរ", ["ชื่", "อ", "ខ្", "មែ", "រ"]),  # a character with its marks
        ("カード、々 ﾊﾟ", ["カ", "ー", "ド", "々", "パ"]),
        ("한국어 \u1112\u1161\u11ab", ["한국어", "한"]),
        ("J\u030c \u01f0 q\u0307\u0323 q\u0323\u0307", ["\u01f0", "\u01f0", "q\u0323\u0307", "q\u0323\u0307"]),
        ("می\u200cخواهم doc\u00adument\u2060s", ["میخواهم", "documents"]),  # what nobody sees
        ("don't don\u2019t don\u02bct well\u2010read", ["don", "t"] * 3 + ["well", "read"]),
        ("1\ufe0f\u20e3 \u2764\ufe0f \U0001f469\u200d\U0001f469 \u0301", ["1"]),  # emoji, and an accent on nothing
        ("... --- !!!", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text(st.characters(max_codepoint=127)))
def test_plain_text_is_read_like_any_other(text: str) -> None:
    """Character by character; the second text goes the other way, by one letter that is not ASCII."""
    kept = "".join(char if char.isalnum() else " " for char in text.lower())
    assert words(text) == kept.split() == words(f"{text} \u00e9")[:-1]


def test_the_short_way_finds_the_same() -> None:
    """Of every character that does not call for the long one."""
    short = [char for char in map(chr, range(0x30000)) if not word_rules._OTHER.search(char)]
    assert len(short) > 3000
    differ = [char for char in short if word_rules._WORD.findall(char) != word_rules._PLAIN_RUN.findall(char)]
    assert differ == []


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("राम ने सीता को वन में फल और जल दिया तथा मीरा ने गीता को नया घर दिखाया", "\u093e-\u094c"),
        ("রাম সীতাকে বনে ফল দিল এবং মীরা গীতাকে নতুন বাড়ি দেখাল আর সবাই বাড়ি ফিরে গেল", "\u09be-\u09cc"),
        ("كَتَبَ مَثَلَ جَلَسَ ذَهَبَ عَمَلَ نَظَرَ سَمَعَ فَتَحَ خَرَجَ دَخَلَ شَرَبَ أَكَلَ لَعَبَ", "\u064e-\u0650"),
    ],
)
def test_another_vowel_is_another_word(text: str, signs: str) -> None:
    index = made(13, text)
    assert [how for _, how, _ in found(index, unicodedata.normalize("NFD", text))] == ["run"]
    kept = sorted(set(re.findall(f"[{signs}]", text)))
    assert found(index, re.sub(f"[{signs}]", lambda sign: kept[0] if sign[0] != kept[0] else "\u0301", text)) == []


def test_words_with_vowel_signs_are_counted_once() -> None:
    """Five words are a short item, however many signs they have."""
    index = made(13, "हिन्दी में कितने शब्द हैं")
    assert found(index, "हिन्दी में कितने शब्द हैं") == [(0, "item", 0)]
    assert found(index, "देखो: हिन्दी में कितने शब्द हैं") == []


def made(n: int, *texts: str, question: str | None = None) -> Index:
    index = Index(n)
    index.add([Item(f"e:{i}", (text,), question) for i, text in enumerate(texts, 1)])
    index.build()
    return index


def found(index: Index, *messages: str) -> list[tuple[int, str, int]]:
    (hits,) = index.find([[words(message) for message in messages]])
    return [(hit.item, hit.how, hit.shared) for hit in hits]


THIRTEEN = "one two three four five six seven eight nine ten eleven twelve thirteen"


def test_thirteen_words_and_not_twelve() -> None:
    index = made(13, f"before {THIRTEEN} after")
    assert found(index, f"Now: {THIRTEEN.upper().replace(' ', ', ')}!") == [(0, "run", 1)]
    assert found(index, f"before {THIRTEEN} after") == [(0, "run", 3)]
    assert found(index, THIRTEEN.partition(" ")[2]) == []  # twelve
    assert found(index, THIRTEEN.replace("seven", "7")) == []
    assert found(index, THIRTEEN.replace("seven", "seven seven")) == []
    assert found(index, " ".join(reversed(THIRTEEN.split()))) == []


def test_a_run_goes_from_prompt_to_response_and_not_to_the_next_example() -> None:
    index = made(13, THIRTEEN)
    first, second = THIRTEEN[:28], THIRTEEN[28:]
    assert found(index, first, second) == [(0, "run", 1)]
    assert [len(hits) for hits in index.find([[words(first)], [words(second)]])] == [0, 0]


def test_runs_do_not_go_from_item_to_item() -> None:
    index = made(5, "a b c d e", "f g h i j")
    assert found(index, "c d e f g h") == []
    assert found(index, "x a b c d e y f g h i j") == [(0, "run", 1), (1, "run", 1)]


def test_short_items_count_as_a_whole_alone() -> None:
    index = made(13, "What is the capital of France?", "Paris")
    assert found(index, "what is the CAPITAL of france", "Rome") == [(0, "item", 0)]
    assert found(index, "Name it.", "Paris.") == [(1, "item", 0)]
    assert found(index, "What is the capital", "of France") == [(0, "item", 0)]  # all messages together
    assert found(index, "Tell me: what is the capital of France?", "It is Paris") == []
    assert index.share(next(index.find([[["paris"]]]))[0]) == 1.0


def test_a_short_question_of_a_long_item() -> None:
    index = made(13, f"Who are you? {THIRTEEN}", question="Who are you?")
    assert found(index, "who are you", "An assistant") == [(0, "question", 0)]
    assert index.share(next(index.find([[words("who are you")]]))[0]) is None
    assert found(index, "who are you really", "An assistant") == []


def test_how_much_of_an_item_is_covered() -> None:
    text = " ".join(f"w{i}" for i in range(22))  # ten runs of 13
    index = made(13, text)
    (hits,) = index.find([[words(" ".join(f"w{i}" for i in range(16)))]])
    assert hits[0].shared == 4 and index.share(hits[0]) == 0.4 and hits[0].text.startswith("w0 w1")
    next(index.find([[words(" ".join(f"w{i}" for i in range(2, 17)))]]))
    assert index.covered_shares().tolist() == [0.5]  # what both together have


def test_hashes_only_point(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run has the same hash: the words decide."""
    monkeypatch.setattr(module, "mix", lambda ids: np.zeros(len(ids), dtype=np.uint64))
    index = made(3, "a b c d", "x y z")
    assert found(index, "q b c d a x y") == [(0, "run", 1)]


@pytest.mark.parametrize("seed", range(3))
def test_against_a_slow_twin(seed: int) -> None:
    """Sets of tuples of words, over texts of few words, so that much is shared."""
    rng = random.Random(seed)

    def text(most: int) -> list[str]:
        return [rng.choice("abcd") for _ in range(rng.randrange(most))]

    items, examples, n = [text(30) for _ in range(40)], [[text(20), text(20)] for _ in range(60)], 4
    index = made(n, *(" ".join(one) for one in items))
    kept = [i for i, one in enumerate(items)]  # empty ones are items, too, if they are added
    for parts, hits in zip(examples, index.find(examples), strict=True):
        said = parts[0] + parts[1]
        runs = {tuple(said[i : i + n]) for i in range(len(said) - n + 1)}
        wholes = {tuple(one) for one in (*parts, said) if one}
        expected = {}
        for i in kept:
            own = [tuple(items[i][k : k + n]) for k in range(len(items[i]) - n + 1)]
            if shared := sum(run in runs for run in own):
                expected[i] = ("run", shared)
            elif 0 < len(items[i]) < n and tuple(items[i]) in wholes:
                expected[i] = ("item", 0)
        assert {hit.item: (hit.how, hit.shared) for hit in hits} == expected


# ------------------------------------------------------------------------------------------------------------- files


def test_all_texts_of_a_record(tmp_path: Path) -> None:
    record = {"id": "x_1", "question": "Q?", "choices": ["a", {"text": "b"}], "n": 3, "category": "c", "answer": None}
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps(record) + "\n\n" + json.dumps({"n": 1}) + "\n" + json.dumps("bare"))
    assert [*read_items(path)] == [Item(f"{path}:1", ("Q?", "a", "b"), "Q?"), Item(f"{path}:4", ("bare",))]
    packed = tmp_path / "e.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [item.texts for item in read_items(packed)] == [("Q?", "a", "b"), ("bare",)]


def test_tables_with_and_without_a_header(tmp_path: Path) -> None:
    bare, named = tmp_path / "bare.csv", tmp_path / "named.csv"
    bare.write_text('"What is it, now?",x,y,A\nAnother,1,2,B\n')
    named.write_text('question,answer\n"What is\nit?",x\n')
    assert [(item.where, item.question) for item in read_items(bare)] == [
        (f"{bare}:1", "What is it, now?"),
        (f"{bare}:2", "Another"),
    ]
    assert [*read_items(named)] == [Item(f"{named}:2", ("What is\nit?", "x"), "What is\nit?")]


def test_an_archive(tmp_path: Path) -> None:
    path = tmp_path / "e.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/test/b.csv", "Why is it so?,a,b,A\n")
        archive.writestr("data/a.jsonl", '{"question": "Q"}\n')
        archive.writestr("data/c.json", '[{"question": "R"}]')
        archive.writestr("README.txt", "nothing")
    assert [item.where for item in read_items(path)] == [
        f"{path}:data/a.jsonl:1",
        f"{path}:data/c.json:1",
        f"{path}:data/test/b.csv:1",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no evaluation file"):
        [*read_items(tmp_path / "none")]
    broken = tmp_path / "e.jsonl"
    broken.write_text('{"question": "Q"}\n{"question"')
    with pytest.raises(DataError, match=r"e\.jsonl:2.*invalid JSON"):
        [*read_items(broken)]
    empty = tmp_path / "e.zip"
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("x.txt", "x")
    with pytest.raises(DataError, match="holds no file of"):
        [*read_items(empty)]
    (tmp_path / "cut.zip").write_bytes(empty.read_bytes()[:40])
    with pytest.raises(DataError, match="is damaged"):
        [*read_items(tmp_path / "cut.zip")]
    (tmp_path / "x.csv").write_bytes(b"question,answer\n\xff\xfe,b\n")
    with pytest.raises(DataError, match="not UTF-8"):
        [*read_items(tmp_path / "x.csv")]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("gsm8k_test.jsonl", 1319),
        ("humaneval.jsonl", 164),
        ("humaneval_plus.jsonl.gz", 164),
        ("truthfulqa.jsonl", 817),
        ("arc_easy.jsonl", 2376),
        ("arc_challenge.jsonl", 1172),
        ("piqa.jsonl", 1838),
        ("mmlu.zip", 14042 + 1531 + 285),
        ("judge_lima.jsonl", 300),
        ("judge_sinstruct.jsonl", 252),
    ],
)
def test_real_evaluation_files(shared: Path, name: str, items: int) -> None:
    path = shared / "data" / "eval" / name
    read = [*read_items(path)]
    assert len(read) == items and all(item.question for item in read if "lima" not in name)
