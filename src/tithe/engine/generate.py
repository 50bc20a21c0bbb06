"""Generate answers to prompts with the model's own `generate`, so that the batch does not change a prompt's answer.

Rows are padded on the left and masked. If a model gives other scores that way than for a single prompt (this is
tested), its batches have prompts of equal length only. What remains is rounding: in another batch the last bits of a
score differ, and if two tokens are that close, the other one may win. The same prompts in the same call give the same
batches.

When sampling, `generate` draws all rows of a batch from one stream of random numbers, so that a row's answer depends on
its neighbours. Here each prompt has a stream of its own, fixed by its seed: its n-th token uses the n-th number.
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
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.loading import read_weights, rotary_limit
from tithe.engine.measure.cpu_kernels import put_back
from tithe.engine.model_files import read_object
from tithe.engine.model_source import ModelSource, demand_known_ids, fingerprint
from tithe.errors import ModelError
from tithe.records import IntArray, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION = 1  # raise it when a change moves answers by more than rounding, so that stored answers are not reused
CPU_BUDGET, GPU_BUDGET = 16_384, 131_072  # tokens of a batch, those to be generated included
# How far padding may move the first token's scores, as a share of their spread.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
FIRST = 256  # likeliest tokens tried first for top-p: more are seldom needed, and sorting all of them is slow


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A prompt to be answered.

    Args:
        ids: (tokens,) token ids of the prompt; not empty.
        seed: 64 bits that fix its random numbers.
    """

    ids: IntArray
    seed: int = 0


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """An answer.

    Args:
        text: without special tokens and outer white space.
        tokens: number of generated tokens, without the end marker.
        finished: whether the model ended the answer itself.
    """

    text: str
    tokens: int
    finished: bool


@dataclass
class AnswerGenerator:
    """A model that answers prompts.

    Args:
        model: see `load_for_generation`.
        tokenizer: the model's own.
        stops: token ids that end an answer.
        temperature: 0 always takes the likeliest token.
        top_p: sample from the likeliest tokens that together have this probability.
        max_new_tokens: longest answer.
        window: most tokens of prompt and answer together; None if unknown.
        budget: tokens per batch; None for the device's default.
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
        # The penalties and top-k that the model's own `generation_config.json` suggests must not be applied.
        self.model.model.generation_config = type(self.model.model.generation_config)()

    def answer_limit(self, wanted: GenerationRequest) -> int:
        """Return the most tokens the answer may have; 0 or less if the prompt fills the window."""
        left = self.max_new_tokens if self.window is None else self.window - len(wanted.ids)
        return min(self.max_new_tokens, left)

    def batches(self, wanted: Sequence[GenerationRequest]) -> list[list[int]]:
        """Group prompts into batches: longest first, so that running out of memory shows at once."""
        assert self.budget is not None
        order = sorted(range(len(wanted)), key=lambda i: (-len(wanted[i].ids), i))
        found: list[list[int]] = []
        for i in order:
            first = wanted[found[-1][0]] if found else None
            # A long prompt leaves less of the window for its answer; rows with different limits do not share a batch.
            full = first is None or (len(found[-1]) + 1) * (len(first.ids) + self.answer_limit(first)) > self.budget
            if (
                first is None
                or full
                or self.answer_limit(first) != self.answer_limit(wanted[i])
                or self.apart(first, wanted[i])
            ):
                found.append([])
            found[-1].append(i)
        return found

    def apart(self, first: GenerationRequest, other: GenerationRequest) -> bool:
        """Tell whether two prompts must not be answered together."""
        limit = self.model.single_above
        too_long = limit is not None and len(first.ids) + self.answer_limit(first) > limit
        return too_long or (len(first.ids) != len(other.ids) and not self.pads)

    def answer(self, wanted: Sequence[GenerationRequest]) -> list[GeneratedAnswer | Problem]:
        """Answer one batch; if memory runs out, halve it and go on."""
        if self.answer_limit(wanted[0]) < 1:
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

    def generate(self, wanted: Sequence[GenerationRequest]) -> list[GeneratedAnswer]:
        """Answer one batch in one call of the model's `generate`."""
        steps, width = self.answer_limit(wanted[0]), max(len(one.ids) for one in wanted)
        processors: list[Any] = []
        if self.temperature > 0:
            seeds = [one.seed for one in wanted]
            processors = [SeededDraw(seeds, width, steps, self.temperature, self.top_p, self.model.device)]
        out = self.run(wanted, max_new_tokens=steps, logits_processor=processors)
        return [self.cut(row) for row in out[:, width:].tolist()]

    def run(self, wanted: Sequence[GenerationRequest], **more: Any) -> Any:
        """Call the model's `generate` on left-padded rows."""
        ids, mask = padded([one.ids for one in wanted], self.pad)
        demand_known_ids(self.model.source.name, int(ids.max(initial=0)), self.model.vocabulary)
        self.model.forget()  # rotary scalings must not depend on prompts read before
        with torch.inference_mode():
            return self.model.model.generate(
                input_ids=torch.from_numpy(ids).to(self.model.device),
                attention_mask=torch.from_numpy(mask).to(self.model.device),
                do_sample=False,  # greedy, also when sampling: `SeededDraw` leaves one token to choose
                num_beams=1,
                eos_token_id=sorted(self.stops) or None,
                pad_token_id=self.pad,
                **more,
            )

    def cut(self, ids: Sequence[int]) -> GeneratedAnswer:
        """Turn one row's new tokens into an answer, cut at the first end marker."""
        end = next((i for i, token in enumerate(ids) if token in self.stops), None)
        kept = list(ids[:end])
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        assert isinstance(text, str)
        return GeneratedAnswer(text.strip(), len(kept), end is not None)

    @property
    def pad(self) -> int:
        """Return a padding id: any will do, as it is masked before the prompt and cut off after the answer."""
        return min(self.stops, default=0)

    @cached_property
    def pads(self) -> bool:
        """Tell whether a padded row gives the same scores as a single one."""
        rng = np.random.default_rng(0)
        rows = [
            GenerationRequest(rng.integers(0, min(self.model.vocabulary, 1000), n, dtype=np.int32)) for n in (23, 9)
        ]
        together = self.first_scores(rows)[1]
        alone = self.first_scores(rows[1:])[0]
        apart, spread = (together - alone).abs().max(), alone.max() - alone.min()
        return bool(apart <= TOLERANCE[self.model.dtype] * spread)

    def first_scores(self, wanted: Sequence[GenerationRequest]) -> torch.Tensor:
        """Return (rows, vocabulary) scores of the first new token."""
        more = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
        scores: torch.Tensor = self.run(wanted, **more).logits[0]
        return scores.float().cpu()


def padded(rows: Sequence[IntArray], pad: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return ids and mask, both (rows, longest) int64, padded on the left."""
    width = max(map(len, rows))
    ids, mask = np.full((len(rows), width), pad, dtype=np.int64), np.zeros((len(rows), width), dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :], mask[i, width - len(row) :] = row, 1
    return ids, mask


def load_for_generation(
    source: ModelSource, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load a model to generate with, using its default attention; no forward path is chosen.

    Raises:
        ModelError: weights are missing, do not fit the config, or do not fit into memory.
        SettingsError: the device or dtype is not available.
    """
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    try:
        model = read_weights(source, kind, trust_remote_code)
        loaded = LoadedModel(source, model.to(place), place, kind, fingerprint(source))
        put_back()  # the text must not depend on fp32 kernels chosen for an earlier model of this process
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"model `{source.name}` in {dtype_name(kind)} does not fit into the memory of `{place}`",
            hint="a smaller dtype or model, or another device",
        ) from error
    loaded.single_above = rotary_limit(model.config.get_text_config())
    return loaded


def stop_ids(source: ModelSource, tokenizer: PreTrainedTokenizerBase, markers: Iterable[str] = ()) -> frozenset[int]:
    """Return the ids that end an answer, from the model's files, its tokenizer and end-of-turn markers.

    Args:
        source: its `generation_config.json` and `config.json` are read, not its weights.
        tokenizer: the model's own.
        markers: what the template writes after a response; only single special tokens are used.
    """
    config = source.config
    said = [part.get("eos_token_id") for part in (generation_config(source), config, config.get("text_config") or {})]
    said += [tokenizer.eos_token_id, *(tokenizer.get_added_vocab().get(marker) for marker in markers)]
    ids = [one for part in said for one in (part if isinstance(part, list | tuple) else [part])]
    return frozenset(one for one in ids if isinstance(one, int) and not isinstance(one, bool) and one >= 0)


def generation_config(source: ModelSource) -> dict[str, Any]:
    """Read the model's own `generation_config.json`; empty if it has none.

    Raises:
        ModelError: the file cannot be read, so its end markers would be missed.
    """
    if source.gguf is not None:  # says it in its header, as the config does
        return {}
    path = source.folder / "generation_config.json"
    return read_object(path, f"model `{source.name}`") if path.exists() else {}


class SeededDraw(LogitsProcessor):
    """A logits processor that draws every row's next token and masks all others, so that greedy `generate` takes it.

    Args:
        seeds: one per row.
        start: tokens of the padded prompt.
        steps: most tokens to draw.
        temperature: above 0; scores are divided by it.
        top_p: sample from the smallest set of likeliest tokens that has this probability.
        device: where the scores are.
    """

    def __init__(
        self, seeds: Sequence[int], start: int, steps: int, temperature: float, top_p: float, device: torch.device
    ) -> None:
        self.start, self.temperature, self.top_p = start, temperature, top_p
        numbers = np.stack([np.random.Generator(np.random.Philox(seed)).random(steps) for seed in seeds])
        kind = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.numbers = torch.tensor(numbers, dtype=kind, device=device)  # (rows, steps) in [0, 1)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        numbers = self.numbers[:, input_ids.shape[1] - self.start]
        chosen = draw(scores.to(self.numbers.dtype) / self.temperature, numbers, self.top_p)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen[:, None], 0.0)


def draw(scores: torch.Tensor, numbers: torch.Tensor, top_p: float) -> torch.Tensor:
    """Draw one token per row, by where its number falls in the cumulative probabilities: (rows,) ids.

    The probabilities are accumulated by token id and not by rank: if rounding swaps two ranks, no other token's
    interval moves.
    """
    kept = nucleus(scores.softmax(-1), top_p)
    ends = kept.cumsum(-1)
    aims = numbers[:, None] * ends[:, -1:]
    chosen = torch.searchsorted(ends, aims, right=True)[:, 0]
    last = kept.shape[-1] - 1 - (kept.flip(-1) > 0).int().argmax(-1)  # rounding may aim past the last kept token
    return torch.minimum(chosen, last)


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the probabilities of the likeliest tokens that together reach `top_p`, and set the others to 0.

    At least one is kept. Ties with the last kept token are kept too, so that no order among equals decides.
    """
    if top_p >= 1:
        return probabilities
    # All rows sort together only if one needs it: mostly the first 256 tokens hold top_p of the probability.
    ranked = probabilities.topk(min(FIRST, probabilities.shape[-1]), dim=-1).values
    if bool((ranked.sum(-1) < top_p).any()):
        ranked = probabilities.sort(dim=-1, descending=True).values
    before = ranked.cumsum(-1) - ranked  # probability of all likelier tokens: (rows, tokens)
    least = ranked.masked_fill(before >= top_p, float("inf")).amin(-1, keepdim=True)
    return probabilities.masked_fill(probabilities < least, 0.0)
