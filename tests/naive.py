"""The slow twin: one record, one token at a time, from the papers' formulas. It shares no code with what it checks."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

PREAMBLE = "Below is an instruction that describes a task{}. Write a response that appropriately completes the request."


def alpaca(record: dict[str, str]) -> str:
    """Stanford Alpaca's prompt."""
    if record.get("input"):
        head = PREAMBLE.format(", paired with an input that provides further context")
        return f"{head}\n\n### Instruction:\n{record['instruction']}\n\n### Input:\n{record['input']}\n\n### Response:"
    return f"{PREAMBLE.format('')}\n\n### Instruction:\n{record['instruction']}\n\n### Response:"


class Naive:
    """A model read by transformers alone, in fp32."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.bos = self.tokenizer("a")["input_ids"][: -len(self.plain("a")) or None]
        self.nll = cache(self._nll)

    def plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def parts(self, record: dict[str, str]) -> tuple[list[int], list[int]]:
        """Ids of prompt and response, whose boundary is where the prompt's own ids end."""
        prompt = self.plain(alpaca(record))
        both = self.plain(alpaca(record) + record["output"])
        assert both[: len(prompt)] == prompt, "a token reaches over the boundary"
        return prompt, both[len(prompt) :]

    def given(self, record: dict[str, str]) -> tuple[float, int]:
        prompt, response = self.parts(record)
        return self.nll((*self.bos, *prompt), tuple(response))

    def alone(self, record: dict[str, str]) -> tuple[float, int]:
        return self.nll(tuple(self.bos), tuple(self.parts(record)[1]))

    def shown(self, record: dict[str, str], *shots: dict[str, str]) -> tuple[float, int]:
        """Dialogue after dialogue in one text, blank lines between."""
        whole = self.plain("\n\n".join(alpaca(one) + one["output"] for one in (*shots, record)))
        response = self.parts(record)[1]
        assert whole[len(whole) - len(response) :] == response
        return self.nll((*self.bos, *whole[: len(whole) - len(response)]), tuple(response))

    def _nll(self, context: tuple[int, ...], response: tuple[int, ...]) -> tuple[float, int]:
        """-log p of a response in nats, summed, and its number of tokens; a forward pass per token."""
        ids, total, count = list(context), 0.0, 0
        for token in response:
            if ids:
                with self.torch.no_grad():
                    logits = self.model(self.torch.tensor([ids]), use_cache=False).logits[0, -1].double().tolist()
                top = max(logits)
                total += top + math.log(math.fsum(math.exp(x - top) for x in logits)) - logits[token]
                count += 1
            ids.append(token)
        return total, count

    def miwv(self, record: dict[str, str], *shots: dict[str, str]) -> float:
        """L(y|x, C) - L(y|x), and how large the two are."""
        (one, tokens), (zero, same) = self.shown(record, *shots), self.given(record)
        assert tokens == same
        return one / tokens - zero / tokens

    def ifd(self, record: dict[str, str], *shots: dict[str, str]) -> float:
        (conditioned, tokens), (direct, same) = self.shown(record, *shots), self.alone(record)
        assert tokens == same
        return (conditioned / tokens) / (direct / tokens)

    def vector(self, text: str) -> list[float]:
        """The mean of the last hidden states, in float64."""
        with self.torch.no_grad():
            out = self.model(self.torch.tensor([[*self.bos, *self.plain(text)]]), output_hidden_states=True)
        return out.hidden_states[-1][0].double().mean(0).tolist()

    def direction(self, record: dict[str, str]) -> list[float]:
        """sum_t w_t H_last[t], w_t = t / sum(t), over prompt and response, made to length 1, in float64."""
        prompt, response = self.parts(record)
        with self.torch.no_grad():
            out = self.model(self.torch.tensor([[*self.bos, *prompt, *response]]), output_hidden_states=True)
        states = out.hidden_states[-1][0].double().tolist()
        total, summed = [0.0] * len(states[0]), sum(range(1, len(states) + 1))
        for t, state in enumerate(states, start=1):
            total = [so_far + t / summed * x for so_far, x in zip(total, state, strict=True)]
        length = math.sqrt(math.fsum(x * x for x in total))
        return [x / length for x in total]

    def replies(self, prompt: str, texts: str) -> list[float]:
        """The probability of each character as the one next token after a prompt, of all that there are."""
        ids = self.plain(prompt)
        with self.torch.no_grad():
            logits = self.model(self.torch.tensor([[*self.bos, *ids]]), use_cache=False).logits[0, -1].double().tolist()
        total = math.fsum(math.exp(x - max(logits)) for x in logits)
        found = []
        for text in texts:
            *before, token = self.plain(prompt + text)
            assert before == ids, "a token reaches over the boundary"
            found.append(math.exp(logits[token] - max(logits)) / total)
        return found


def words(record: dict[str, str]) -> str:
    """What is embedded: the record's own instruction and input, without a template."""
    return f"{record['instruction']}\n{record['input']}" if record.get("input") else record["instruction"]


def cosine(a: list[float], b: list[float]) -> float:
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(x * x for x in b))


def by_likeness(vectors: list[list[float]], i: int) -> list[int]:
    """The others, the most alike first, ties by the lowest index."""
    others = [j for j in range(len(vectors)) if j != i]
    return sorted(others, key=lambda j: (-cosine(vectors[i], vectors[j]), j))
