"""Answers of a model to prompts, by the model's own `generate`, in batches that do not change what a prompt gets.

Rows are padded on the left and masked. A model for which that is not the same as reading each prompt alone (found out
by trying) gets batches of equal lengths. What remains is rounding: in another batch the last bits of a score differ,
and where two tokens are that close another may be taken. The same prompts in the same call give the same batches.

Where tokens are drawn, `generate` draws all rows of a batch from one stream of random numbers, so that a row's answer
depends on its neighbours. Here each prompt has a stream of its own, fixed by its seed: its n-th token is drawn with the
n-th number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor

from tithe.engine.devices import choose_device, choose_dtype, dtype_name
from tithe.engine.engine import OUT_OF_MEMORY, unless_out_of_memory
from tithe.engine.loading import read_weights, rotary_switch
from tithe.engine.measure.cpu_kernels import put_back
from tithe.engine.model import LoadedModel
from tithe.engine.model_files import read_object
from tithe.engine.sources import ModelSource, demand_embedded, fingerprint
from tithe.errors import ModelError
from tithe.records import IntArray, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION = 1  # raise it when a change moves answers by more than rounding: stored ones are then not met again
CPU_BUDGET, GPU_BUDGET = 16_384, 131_072  # tokens of a batch, those to come included
# How far the first token's scores may move by padding, as a share of their spread.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
FIRST = 256  # most likely tokens that are looked at first; seldom are more needed, and to sort them all is slow


@dataclass(frozen=True, slots=True)
class Wanted:
    """A prompt to be answered.

    Args:
        ids: (tokens,) what the model reads; not empty.
        seed: 64 bits that fix what is drawn for it.
    """

    ids: IntArray
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """An answer.

    Args:
        text: without special tokens and outer white space.
        tokens: that were generated, what ended it not counted.
        finished: whether the model ended by itself.
    """

    text: str
    tokens: int
    finished: bool


@dataclass
class Generator:
    """Prompts in, answers out.

    Args:
        model: what answers, see `load_writer`.
        tokenizer: its own.
        stops: token ids that end an answer.
        temperature: 0 takes the likeliest token each time.
        top_p: share of probability that is drawn from.
        max_new_tokens: where an answer is cut off.
        window: tokens of prompt and answer together at most, None if that is not known.
        budget: tokens a batch holds, None for the device's default.
    """

    model: LoadedModel
    tokenizer: PreTrainedTokenizerBase
    stops: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 512
    window: int | None = None
    budget: int | None = None
    halved: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.stops = frozenset(one for one in self.stops if one < self.model.vocabulary)
        self.budget = self.budget or (CPU_BUDGET if self.model.device.type == "cpu" else GPU_BUDGET)
        # What the model's own `generation_config.json` suggests (penalties, top-k) is not asked for and not applied.
        self.model.model.generation_config = type(self.model.model.generation_config)()

    def room(self, wanted: Wanted) -> int:
        """Count the tokens the answer may have; none or fewer where the prompt fills the window."""
        left = self.max_new_tokens if self.window is None else self.window - len(wanted.ids)
        return min(self.max_new_tokens, left)

    def batches(self, wanted: Sequence[Wanted]) -> list[list[int]]:
        """Group prompts that are answered together: longest first, so that running out of memory shows at once."""
        assert self.budget is not None
        order = sorted(range(len(wanted)), key=lambda i: (-len(wanted[i].ids), i))
        found: list[list[int]] = []
        for i in order:
            first = wanted[found[-1][0]] if found else None
            # Near the window's end answers get shorter; rows that stop at different places do not share a batch.
            full = first is None or (len(found[-1]) + 1) * (len(first.ids) + self.room(first)) > self.budget
            if first is None or full or self.room(first) != self.room(wanted[i]) or self.apart(first, wanted[i]):
                found.append([])
            found[-1].append(i)
        return found

    def apart(self, first: Wanted, other: Wanted) -> bool:
        """Tell whether two prompts must not be answered together."""
        limit = self.model.alone_above
        too_long = limit is not None and len(first.ids) + self.room(first) > limit
        return too_long or (len(first.ids) != len(other.ids) and not self.pads)

    def answer(self, wanted: Sequence[Wanted]) -> list[Generated | Problem]:
        """Answer one batch; out of memory halves it and goes on."""
        if self.room(wanted[0]) < 1:
            return [
                Problem(f"the prompt fills the context window: {len(w.ids)} tokens of {self.window}") for w in wanted
            ]
        found = unless_out_of_memory(lambda: self.generate(wanted), self.model.device)
        if found is not None:
            return [*found]
        if len(wanted) == 1:
            return [OUT_OF_MEMORY]
        self.halved += 1
        middle = len(wanted) // 2
        return self.answer(wanted[:middle]) + self.answer(wanted[middle:])

    def generate(self, wanted: Sequence[Wanted]) -> list[Generated]:
        """Answer the batch in one call."""
        steps, width = self.room(wanted[0]), max(len(one.ids) for one in wanted)
        processors: list[Any] = []
        if self.temperature > 0:
            seeds = [one.seed for one in wanted]
            processors = [Draw(seeds, width, steps, self.temperature, self.top_p, self.model.device)]
        out = self.run(wanted, max_new_tokens=steps, logits_processor=processors)
        return [self.cut(row) for row in out[:, width:].tolist()]

    def run(self, wanted: Sequence[Wanted], **more: Any) -> Any:
        """Call the model's `generate` on left-padded rows."""
        ids, mask = padded([one.ids for one in wanted], self.pad)
        demand_embedded(self.model.source.name, int(ids.max(initial=0)), self.model.vocabulary)
        self.model.forget()
        with torch.inference_mode():
            return self.model.model.generate(
                input_ids=torch.from_numpy(ids).to(self.model.device),
                attention_mask=torch.from_numpy(mask).to(self.model.device),
                do_sample=False,
                num_beams=1,
                eos_token_id=sorted(self.stops) or None,
                pad_token_id=self.pad,
                **more,
            )

    def cut(self, ids: Sequence[int]) -> Generated:
        """Turn one row's new tokens into an answer."""
        end = next((i for i, token in enumerate(ids) if token in self.stops), None)
        kept = list(ids[:end])
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        assert isinstance(text, str)
        return Generated(text.strip(), len(kept), end is not None)

    @property
    def pad(self) -> int:
        known = [token for token in self.stops if token < self.model.vocabulary]
        return min(known, default=0)  # masked before the prompt, cut off after the answer: any id will do

    @cached_property
    def pads(self) -> bool:
        """Tell whether a padded row gives the scores that it has alone."""
        rng = np.random.default_rng(0)
        rows = [Wanted(rng.integers(0, min(self.model.vocabulary, 1000), n, dtype=np.int32)) for n in (23, 9)]
        together = self.first_scores(rows)[1]
        alone = self.first_scores(rows[1:])[0]
        apart, spread = (together - alone).abs().max(), alone.max() - alone.min()
        return bool(apart <= TOLERANCE[self.model.dtype] * spread)

    def first_scores(self, wanted: Sequence[Wanted]) -> torch.Tensor:
        """Return (rows, vocabulary) scores of the first new token."""
        more = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
        scores: torch.Tensor = self.run(wanted, **more).logits[0]
        return scores.float().cpu()


def padded(rows: Sequence[IntArray], pad: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return (rows, longest) ids and mask, int64; padding stands on the left."""
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), pad, dtype=np.int64), np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    return ids, mask


def load_writer(
    source: ModelSource, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a model for generating: with the attention it comes with, no forward path tried.

    Raises:
        ModelError: weights are missing, do not fit the config, or do not fit into memory.
        SettingsError: the device or dtype is not there.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    try:
        model = read_weights(source, kind, trust_remote_code)
        loaded = LoadedModel(source, model.to(place), place, kind, fingerprint(source))
        put_back()  # a model that writes gives the same text in every process
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"model `{source.name}` in {dtype_name(kind)} does not fit into the memory of `{place}`",
            hint="a smaller dtype or model, or another device",
        ) from error
    loaded.alone_above = rotary_switch(model.config.get_text_config())
    return loaded


def stop_ids(source: ModelSource, tokenizer: PreTrainedTokenizerBase, markers: Iterable[str] = ()) -> frozenset[int]:
    """Return the ids that end an answer, by the model's files, its tokenizer and end-of-turn markers.

    Args:
        source: whose `generation_config.json` and `config.json` are read; its weights are not.
        tokenizer: its own.
        markers: what the template writes after a response; those that are one special token count.
    """
    config = source.config
    said = [part.get("eos_token_id") for part in (generation_config(source), config, config.get("text_config") or {})]
    said += [tokenizer.eos_token_id, *(tokenizer.get_added_vocab().get(marker) for marker in markers)]
    ids = [one for part in said for one in (part if isinstance(part, list | tuple) else [part])]
    return frozenset(one for one in ids if isinstance(one, int) and not isinstance(one, bool) and one >= 0)


def generation_config(source: ModelSource) -> dict[str, Any]:
    """Read the model's own `generation_config.json`; empty where it has none.

    Raises:
        ModelError: it cannot be read; its end markers would be missed.
    """
    path = source.folder / "generation_config.json"
    return read_object(path, f"model `{source.name}`") if path.exists() else {}


class Draw(LogitsProcessor):
    """Draws every row's next token and leaves no other to choose from, so that a greedy `generate` takes it.

    Args:
        seeds: one per row.
        start: tokens of the padded prompt.
        steps: tokens to be drawn at most.
        temperature: above 0; scores are divided by it.
        top_p: the least set of most likely tokens that has this probability is drawn from.
        device: where the scores are.
    """

    def __init__(
        self, seeds: Sequence[int], start: int, steps: int, temperature: float, top_p: float, device: torch.device
    ) -> None:
        self.start, self.temperature, self.top_p = start, temperature, top_p
        numbers = np.stack([np.random.Generator(np.random.Philox(seed)).random(steps) for seed in seeds])
        kind = torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have
        self.numbers = torch.tensor(numbers, dtype=kind, device=device)  # (rows, steps) in [0, 1)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        numbers = self.numbers[:, input_ids.shape[1] - self.start]
        chosen = draw(scores.to(self.numbers.dtype) / self.temperature, numbers, self.top_p)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen[:, None], 0.0)


def draw(scores: torch.Tensor, numbers: torch.Tensor, top_p: float) -> torch.Tensor:
    """Draw (rows,) token ids: where each row's number falls among the kept probabilities, laid out by token id.

    By token id and not by rank: rounding that swaps two ranks then moves no boundary but theirs.
    """
    kept = nucleus(scores.softmax(-1), top_p)
    ends = kept.cumsum(-1)
    aims = numbers[:, None] * ends[:, -1:]
    chosen = torch.searchsorted(ends, aims, right=True)[:, 0]
    last = kept.shape[-1] - 1 - (kept.flip(-1) > 0).int().argmax(-1)  # rounding may aim beyond all of them
    return torch.minimum(chosen, last)


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the probabilities of the likeliest tokens that together reach `top_p`, at least one; 0 elsewhere.

    Tokens as likely as the last of them are kept with it, so that no order among equals decides.
    """
    if top_p >= 1:
        return probabilities
    ranked = probabilities.topk(min(FIRST, probabilities.shape[-1]), dim=-1).values
    if bool((ranked.sum(-1) < top_p).any()):
        ranked = probabilities.sort(dim=-1, descending=True).values
    before = ranked.cumsum(-1) - ranked
    least = ranked.masked_fill(before >= top_p, float("inf")).amin(-1, keepdim=True)
    return probabilities.masked_fill(probabilities < least, 0.0)
