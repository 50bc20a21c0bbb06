"""Eleven kinds of damage, as they are found in instruction-tuning sets. Each has an example, which the tests run."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import ClassVar

from tithe.gate.damage import Damage, Others, pieces, prompt_text, sentences
from tithe.records import Example

FEW_WORDS = 6  # of a response that is long enough to lose some

FILLERS = (
    "I'm sorry, but I can't help with that request.",
    "Thank you for your question! I hope this helps. Let me know if there is anything else you would like to know.",
    "That depends on many things, and there are different opinions about it. It is always good to do some research.",
    "Sure! Here is the answer you asked for. Please feel free to reach out if you need more information.",
    "As a language model I do not have personal opinions, so I cannot give an answer to this.",
    "This is an interesting topic with a long history. Many people have thought about it, and there is a lot to learn.",
    "I do not have enough information to answer. Could you please provide more context?",
    "There are several ways to look at this. Each has its own advantages and disadvantages, so it is up to you.",
    "Great question! It is important to consider all the relevant factors before coming to a conclusion.",
    "No problem, I am happy to assist you with this task. The task has been completed successfully.",
    "N/A",
    "It is what it is. In the end everyone has to decide for themselves what works best for them.",
)
TURN_MARKS = (
    "\n\nUser: {prompt}\nAssistant:",
    "\n### Instruction:\n{prompt}\n\n### Response:\n",
    "<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
    " [/INST] ",
    "</s><s>[INST] {prompt} [/INST]",
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|>",
    "<end_of_turn>\n<start_of_turn>user\n{prompt}<end_of_turn>\n",
    "\nHuman: {prompt}\nAI: ",
    "\n<|endoftext|>",
)


@dataclass(frozen=True)
class OtherAnswer(Damage):
    """The response to another prompt: to a similar one, or one of about the same length.

    Example: "Paris." becomes "Guten Morgen"
    """

    name: ClassVar[str] = "other-answer"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        return (others.near if draw.random() < 0.5 else others.like).response.content


@dataclass(frozen=True)
class Cut(Damage):
    """The response ends inside a sentence, after 20 to 80 % of its words.

    Example: "The sky is blue because air scatters short waves most." becomes "The sky is blue because"
    """

    name: ClassVar[str] = "cut"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        words = pieces(example.response.content)
        if len(words) < FEW_WORDS:
            return None
        at = max(2, round(draw.uniform(0.2, 0.8) * len(words)))
        while at < len(words) - 1 and re.search(r"[.!?:;。！？]['\")\]]*$", words[at - 1]):  # noqa: RUF001
            at += 1  # a cut at the end of a sentence would not show
        return "".join(words[:at])


@dataclass(frozen=True)
class Repeats(Damage):
    """One sentence, or a few words, again and again, until the response is as long as before.

    Example: "One. Two. Three." becomes "One. One. One."
    """

    name: ClassVar[str] = "repeats"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        text = example.response.content.strip()
        parts = sentences(text)
        if draw.random() < 0.3 or len(parts) < 2:
            words = pieces(text)
            if len(words) < 3:
                return None
            start = draw.randrange(len(words) - 2)
            parts = ["".join(words[start : start + draw.randint(2, 6)])]
            before = "".join(words[:start])
        else:
            at, before = (draw.randrange(len(parts)) if draw.random() < 0.5 else 0), ""
            parts = [parts[at]]
        again = parts[0].strip()
        times = max(3, round((len(text) - len(before)) / (len(again) + 1)))
        return " ".join([*([before.strip()] if before.strip() else []), *[again] * times])


@dataclass(frozen=True)
class Shuffled(Damage):
    """The words of the response in random order.

    Example: "Air scatters short waves most." becomes "short most. Air waves scatters"
    """

    name: ClassVar[str] = "shuffled"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        words = example.response.content.split()
        if len(words) < 3:
            return None
        draw.shuffle(words)
        return " ".join(words)


@dataclass(frozen=True)
class Encoding(Damage):
    """UTF-8 read as Latin-1 or cp1252, once or twice; where nothing but ASCII is there, some letters get accents first.

    Example: "Café" becomes "CafÃ©"
    """

    name: ClassVar[str] = "encoding"
    accents: ClassVar[dict[str, str]] = {
        "a": "á",
        "e": "é",
        "i": "í",
        "o": "ö",
        "u": "ü",
        "n": "ñ",
        "c": "ç",
        "'": "\u2019",
        '"': "\u201d",
        "-": "\u2013",
    }

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        text = example.response.content
        if text.isascii():
            chosen = draw.sample(sorted(self.accents), draw.randint(1, 4))
            share = draw.choice((0.3, 1.0))
            text = "".join(self.accents[one] if one in chosen and draw.random() < share else one for one in text)
        name = draw.choice(("latin-1", "cp1252"))
        for _ in range(draw.randint(1, 2)):
            text = text.encode("utf-8", "replace").decode(name, "replace")
        return text


@dataclass(frozen=True)
class Echo(Damage):
    """The prompt, or its end, before or instead of the response.

    Example: "Paris." becomes "Name the capital of France."
    """

    name: ClassVar[str] = "echo"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        prompt = prompt_text(example).strip()
        if len(prompt.split()) < 3:
            return None
        if draw.random() < 0.3:
            prompt = "".join(pieces(prompt)[-30:]).strip()
        response = example.response.content
        return prompt if draw.random() < 0.5 else f"{prompt}\n{response}"


@dataclass(frozen=True)
class EmptyPhrases(Damage):
    """A refusal or a filler that fits any prompt.

    Example: "Paris." becomes "I'm sorry, but I can't help with that request."
    """

    name: ClassVar[str] = "empty-talk"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        return " ".join(draw.sample(FILLERS, draw.choice((1, 1, 2))))


@dataclass(frozen=True)
class WrongTurn(Damage):
    """Role markers, or another template's special tokens, as text: the next turn begins inside the response.

    Example: "Paris." becomes "Paris.</s><s>[INST] Name a river. [/INST]"
    """

    name: ClassVar[str] = "wrong-turn"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        words = pieces(example.response.content)
        at = draw.randint(max(1, len(words) // 2), len(words))
        mark = draw.choice(TURN_MARKS).format(prompt=prompt_text(others.like)[:200].strip())
        return "".join(words[:at]) + mark + "".join(words[at:])


@dataclass(frozen=True)
class Dropped(Damage):
    """Every third word is left out.

    Example: "One two three four five six seven" becomes "One two four five seven"
    """

    name: ClassVar[str] = "dropped"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        words = pieces(example.response.content)
        return "".join(word for i, word in enumerate(words) if i % 3 != 2) if len(words) >= FEW_WORDS else None


@dataclass(frozen=True)
class Mixed(Damage):
    """The first half of the response, and then the second half of another one.

    Example: "The sky is blue on most days." becomes "The sky is and stir well."
    """

    name: ClassVar[str] = "mixed"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        words, more = pieces(example.response.content), pieces(others.like.response.content)
        if len(words) < FEW_WORDS or len(more) < FEW_WORDS:
            return None
        return "".join(words[: len(words) // 2]) + " " + "".join(more[len(more) // 2 :]).strip()


@dataclass(frozen=True)
class Numbers(Damage):
    """Digits are changed.

    Example: "Rome was founded in 753 BC." becomes "Rome was founded in 248 BC."
    """

    name: ClassVar[str] = "numbers"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        text = example.response.content
        if not re.search(r"\d", text):
            return None
        return re.sub(r"\d", lambda found: str((int(found[0]) + draw.randint(1, 9)) % 10), text)
