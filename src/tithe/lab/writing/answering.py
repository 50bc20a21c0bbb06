"""Let a model answer prompts, here or behind an endpoint. Answers are stored as they come."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tithe.data.counts import RemarkCounts, remark_sentences
from tithe.data.prompts import PLACEHOLDER
from tithe.data.render import RenderSettings, TemplateRenderer, make_renderer
from tithe.engine.model_source import find_model
from tithe.errors import demand
from tithe.lab.endpoint.address import Address
from tithe.lab.endpoint.chat_api import Reply, chat, chat_body, map_unordered
from tithe.lab.endpoint.client import Client
from tithe.lab.writing.settings import WritingSettings
from tithe.lab.writing.texts import TextStore, key_of, store_name
from tithe.records import Example, Message, Problem
from tithe.report.reporter import Reporter
from tithe.run.run_model import DTYPE, RunModel, keep_choice, say_dequantised

if TYPE_CHECKING:
    from tithe.engine.generate import AnswerGenerator, GenerationRequest

ENDLESS = 1 << 30  # tokens; for a model that does not state its context window
Answers = dict[str, Mapping[str, Any] | Problem]


class Writer(Protocol):
    """A model that answers prompts; an answer is `{"text", "tokens", "finished"}`, or why there is none.

    Args:
        name: the model's name.
        reused: number of answers that were stored already.
        stored: number of answers that are stored.
        work: counts of the work for the other answers.
    """

    name: str
    reused: int
    stored: int
    work: dict[str, Any]

    def check(self) -> None:
        """Raise every error that can be found before anything is answered."""

    def answers(self, prompts: Mapping[str, Example], place: Path, reporter: Reporter) -> Answers:
        """Return an answer for each prompt id; those stored in the run folder `place` are used again."""

    def describe(self) -> dict[str, Any]:
        """Return what the run record says of the model."""


def make_writer(name: str, settings: WritingSettings, endpoint: str | None, hold: float | None = None) -> Writer:
    """Return a writer; loads nothing and sends nothing.

    Args:
        name: the model's name.
        settings: how it writes.
        endpoint: the endpoint's address; None for a model that runs here.
        hold: most seconds before answers of an endpoint are written to disk; None for the default of a few.
    """
    return LocalWriter(name, settings) if endpoint is None else EndpointWriter(name, settings, endpoint, hold)


def seed_of(seed: int, prompt_id: str) -> int:
    """Return a seed of 64 bits for one prompt, so that its answer does not depend on the other prompts."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{prompt_id}".encode(), digest_size=8).digest(), "big")


@dataclass
class LocalWriter:
    """A model that runs here.

    Args:
        name: folder, hub id or bundled name.
        settings: how it writes.
        reused: number of answers that were stored already.
        stored: number of answers that are stored.
        work: counts of the work for the other answers.
        remarks: notes on the rendering of the prompts.
        dtype: that of the model; None until answers are asked for, as the run folder may decide it.
    """

    name: str
    settings: WritingSettings
    reused: int = field(default=0, init=False)
    stored: int = field(default=0, init=False)
    work: dict[str, Any] = field(default_factory=dict, init=False)
    remarks: RemarkCounts = field(default_factory=RemarkCounts, init=False)
    dtype: str | None = field(default=None, init=False)

    def check(self) -> None:
        demand(self.renderer, self.model.weights_dtype)

    @property
    def left_out(self) -> dict[str, Any]:
        """Return what the template leaves out of the prompts; other remarks concern responses, and none exist yet."""
        name = "left_out_by_template"
        found = self.remarks.as_dict()[name]
        return {name: found} if found else {}

    @cached_property
    def model(self) -> RunModel:
        s = self.settings
        return RunModel(find_model(self.name), s.device, s.dtype, s.trust_remote_code)

    @cached_property
    def renderer(self) -> TemplateRenderer:
        rendering = RenderSettings(template=self.settings.template, max_length=self.model.window or ENDLESS)
        made = make_renderer(self.model.tokenizer, rendering, context_window=self.model.window)
        assert isinstance(made, TemplateRenderer)
        return made

    def take_dtype(self, place: Path, reporter: Reporter) -> None:
        """Use the dtype of the texts that the folder holds already, if `auto` chose it by a CPU's speed.

        The speed varies from run to run, and another dtype would mean other answers.
        """
        self.dtype, note = self.model.dtype_in(place)
        if self.model.dtype_is_timed:
            keep_choice(place, DTYPE, self.dtype)
        if note is not None:
            reporter.say(note)

    @cached_property
    def stops(self) -> frozenset[int]:
        """Return the token ids that end an answer."""
        from tithe.engine.generate import stop_ids

        return stop_ids(self.model.files, self.model.tokenizer, [self.renderer.template.turns.tail.strip()])

    @cached_property
    def sampling(self) -> dict[str, Any]:
        """Return the settings that change the answers; at temperature 0 nothing is drawn."""
        s = self.settings
        drawn = {"top_p": s.top_p, "seed": s.seed} if s.temperature > 0 else {}
        return {"temperature": s.temperature, "max_new_tokens": s.max_new_tokens, **drawn}

    def encode(self, prompts: Mapping[str, Example]) -> dict[str, GenerationRequest | Problem]:
        """Return each prompt as token ids, the ones that precede the response in a scorer's `given` pass."""
        import numpy as np

        from tithe.engine.generate import GenerationRequest

        found: dict[str, GenerationRequest | Problem] = {}
        self.remarks = RemarkCounts()
        asked = [replace(example, response=Message("assistant", PLACEHOLDER)) for example in prompts.values()]
        for key, made in zip(prompts, self.renderer.encode(asked), strict=True):
            if isinstance(made, Problem):
                found[key] = made
                continue
            self.remarks.add(made.remarks)
            ids = np.concatenate([made.lead, made.prompt])  # (tokens,)
            found[key] = (
                GenerationRequest(ids, seed_of(self.settings.seed, key))
                if len(ids)
                else Problem("the prompt has no token")
            )
        return found

    def answers(self, prompts: Mapping[str, Example], place: Path, reporter: Reporter) -> Answers:
        """Answer the prompts that have no answer in the folder yet."""
        from tithe.engine.generate import GENERATION

        self.take_dtype(place, reporter)
        who = {
            "fingerprint": self.model.fingerprint,
            "dtype": self.dtype,
            "version": GENERATION,
            "window": self.model.window,
        }
        store = TextStore(place, store_name(self.name, who | self.sampling | {"stops": sorted(self.stops)}))
        found: Answers = {}
        wanted = self.encode(prompts)
        for sentence in remark_sentences(self.left_out):
            reporter.say(f"{self.name}: {sentence}")
        found |= {key: one for key, one in wanted.items() if isinstance(one, Problem)}
        asked = {key: one for key, one in wanted.items() if not isinstance(one, Problem)}
        # The tokens stand for prompt and template; the seed is that of the prompt's own draws.
        names = {key: key_of(one.ids.tobytes(), str(one.seed)) for key, one in asked.items()}
        self.reused = self.stored = sum(name in store for name in names.values())
        reporter.progress(self.reused + len(found), 0)
        if self.reused < len(asked):
            found |= self.generate([*asked], [*asked.values()], [*names.values()], store, reporter)
        return found | {key: store[name] for key, name in names.items() if name in store}

    def generate(
        self,
        keys: Sequence[str],
        asked: Sequence[GenerationRequest],
        names: Sequence[str],
        store: TextStore,
        reporter: Reporter,
    ) -> Answers:
        """Load the model and let it answer, batch by batch; return the problems of prompts without an answer."""
        generator, problems, tokens = self.load(reporter), Answers(), 0
        # Batches are made of all prompts, and answered ones are left out afterwards: a resumed run has the same batches
        # as one that was never stopped.
        for batch in generator.batches(asked):
            todo = [i for i in batch if names[i] not in store]
            if not todo:
                continue
            for i, got in zip(todo, generator.answer([asked[i] for i in todo]), strict=True):
                if isinstance(got, Problem):
                    problems[keys[i]] = got
                    continue
                store.put(names[i], {"text": got.text, "tokens": got.tokens, "finished": got.finished})
                tokens += got.tokens
            store.flush()  # a batch is stored whole or not at all, so that none is resumed half-way
            self.stored = len(store)
            reporter.progress(len(todo), tokens)
        self.work = {"tokens_generated": tokens, "batches_halved": generator.halved, "pads": generator.pads}
        del generator
        gc.collect()  # free the memory for the next model
        return problems

    def load(self, reporter: Reporter) -> AnswerGenerator:
        """Load the model."""
        from tithe.engine.generate import AnswerGenerator, load_for_generation

        s = self.settings
        assert self.dtype is not None
        say_dequantised(self.model.files, reporter, self.dtype)
        model = load_for_generation(
            self.model.files, device=s.device, dtype=self.dtype, trust_remote_code=s.trust_remote_code
        )
        reporter.say(f"model {self.name} ({model.parameters:,} parameters) writes on {model.device} in {self.dtype}")
        return AnswerGenerator(
            model,
            self.model.tokenizer,
            self.stops,
            temperature=s.temperature,
            top_p=s.top_p,
            max_new_tokens=s.max_new_tokens,
            window=self.model.window,
            budget=s.batch_tokens,
        )

    def describe(self) -> dict[str, Any]:
        dtype = self.dtype or self.model.weights_dtype
        own = {"fingerprint": self.model.fingerprint, "revision": self.model.files.revision, "dtype": dtype}
        stops = {"stop_ids": sorted(self.stops)}
        return own | self.sampling | {"template": self.renderer.describe()} | stops | self.work


@dataclass
class EndpointWriter:
    """A model behind an endpoint.

    Args:
        name: the endpoint's name for the model.
        settings: how it writes.
        endpoint: the endpoint's address.
        hold: most seconds before answers are written to disk, which a process that is killed loses; None for a few.
        reused: number of answers that were stored already.
        stored: number of answers that are stored.
        work: counts of the work for the other answers.
    """

    name: str
    settings: WritingSettings
    endpoint: str
    hold: float | None = None
    reused: int = field(default=0, init=False)
    stored: int = field(default=0, init=False)
    work: dict[str, Any] = field(default_factory=dict, init=False)

    def check(self) -> None:
        demand(self.address)

    @cached_property
    def address(self) -> Address:
        return Address(self.endpoint, self.settings.api_key_env)

    def request(self, prompt_id: str, example: Example) -> dict[str, Any]:
        """Return the request for one prompt; a server that supports seeds gives the same answer again."""
        s = self.settings
        return chat_body(
            self.name,
            example.prompt,
            example.tools,
            temperature=s.temperature,
            top_p=s.top_p if s.temperature > 0 else None,
            max_tokens=s.max_new_tokens,
            seed=seed_of(s.seed, prompt_id) & 0x7FFFFFFF,  # servers take 32 bits, often signed
        )

    def answers(self, prompts: Mapping[str, Example], place: Path, reporter: Reporter) -> Answers:
        """Ask the endpoint about the prompts that have no answer in the folder yet."""
        bodies = {key: self.request(key, example) for key, example in prompts.items()}
        names = {key: key_of(json.dumps(body, sort_keys=True)) for key, body in bodies.items()}
        store = TextStore(place, store_name(self.name, {"endpoint": self.address.page("")}))
        self.reused = self.stored = sum(name in store for name in names.values())
        reporter.progress(self.reused, 0)
        problems: Answers = {}
        s, tokens = self.settings, 0
        client = Client(self.address, timeout=s.timeout, retries=s.retries, connections=s.concurrency)
        todo = [key for key, name in names.items() if name not in store]
        with closing(client):
            try:
                for key, got in map_unordered(lambda key: chat(client, bodies[key]), todo, s.concurrency, client.stop):
                    if isinstance(got, Reply):
                        store.put(
                            names[key], {"text": got.text.strip(), "tokens": got.tokens, "finished": got.finished}
                        )
                        tokens += got.tokens or 0
                    else:
                        problems[key] = got
                    store.flush_now_and_then(self.hold)
                    reporter.progress(1, tokens)
            finally:  # also after an error: answers from a server may have been paid for
                store.flush()
                self.stored = len(store)
        self.work = {"tokens_generated": tokens, "requests_tried_again": client.tried_again}
        return problems | {key: store[name] for key, name in names.items() if name in store}

    def describe(self) -> dict[str, Any]:
        s = self.settings
        own = {"endpoint": self.address.url, "temperature": s.temperature, "top_p": s.top_p, "seed": s.seed}
        return own | {"max_new_tokens": s.max_new_tokens} | self.work
