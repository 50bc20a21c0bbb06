"""Weak models that answer prompts: here, or behind an endpoint. Answers are stored as they come."""

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
from tithe.data.prompts import STAND_IN
from tithe.data.render import RenderSettings, TemplateRenderer, make_renderer
from tithe.engine.model_source import ModelSource, context_window, find_model, fingerprint, load_tokenizer
from tithe.errors import demand
from tithe.lab.endpoint.address import Address
from tithe.lab.endpoint.chat_api import Reply, chat, chat_body, crowd
from tithe.lab.endpoint.client import Client
from tithe.lab.writing.settings import WritingSettings
from tithe.lab.writing.texts import TextStore, key_of, store_name
from tithe.records import Example, Message, Problem
from tithe.report.reporter import Reporter
from tithe.run.model import DTYPE, began_with, keep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tithe.engine.generate import AnswerGenerator, GenerationRequest

ENDLESS = 1 << 30  # tokens, where a model does not say how long its window is
Answers = dict[str, Mapping[str, Any] | Problem]


class Writer(Protocol):
    """A weak model: prompt id -> `{"text", "tokens", "finished"}`, or why there is none.

    Args:
        name: of the model.
        reused: answers that were there before.
        stored: answers that are there.
        work: what was done for the others.
    """

    name: str
    reused: int
    stored: int
    work: dict[str, Any]

    def check(self) -> None:
        """Raise what can be known to be wrong before anything is answered."""

    def answers(self, prompts: Mapping[str, Example], place: Path, reporter: Reporter) -> Answers: ...

    def describe(self) -> dict[str, Any]: ...


def make_writer(name: str, settings: WritingSettings, endpoint: str | None, hold: float | None = None) -> Writer:
    """One model; nothing is loaded and nobody asked.

    Args:
        name: of the model.
        settings: how it writes.
        endpoint: the address, None for a model that runs here.
        hold: seconds that answers from an endpoint may wait to be written to disk; None is a few.
    """
    return LocalWriter(name, settings) if endpoint is None else EndpointWriter(name, settings, endpoint, hold)


def seed_of(seed: int, prompt_id: str) -> int:
    """64 bits for one prompt: what is drawn for it depends on nothing else."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{prompt_id}".encode(), digest_size=8).digest(), "big")


@dataclass
class LocalWriter:
    """A model that runs here.

    Args:
        name: folder, hub id or bundled name.
        settings: how it writes.
    """

    name: str
    settings: WritingSettings
    reused: int = field(default=0, init=False)
    stored: int = field(default=0, init=False)
    work: dict[str, Any] = field(default_factory=dict, init=False)
    remarks: RemarkCounts = field(default_factory=RemarkCounts, init=False)

    def check(self) -> None:
        demand(self.renderer, self.dtype)

    @property
    def left_out(self) -> dict[str, Any]:
        """Return what the template leaves out of the prompts; of the response nothing is known yet."""
        name = "left_out_by_template"
        found = self.remarks.as_dict()[name]
        return {name: found} if found else {}

    @cached_property
    def source(self) -> ModelSource:
        return find_model(self.name)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.source)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.source, trust_remote_code=self.settings.trust_remote_code)

    @cached_property
    def window(self) -> int | None:
        return context_window(self.source, self.tokenizer)

    @cached_property
    def renderer(self) -> TemplateRenderer:
        rendering = RenderSettings(template=self.settings.template, max_length=self.window or ENDLESS)
        made = make_renderer(self.tokenizer, rendering, context_window=self.window)
        assert isinstance(made, TemplateRenderer)
        return made

    @cached_property
    def dtype(self) -> str:
        from tithe.engine.devices import choose_device, choose_dtype, dtype_name

        return dtype_name(choose_dtype(self.settings.dtype, choose_device(self.settings.device)))

    def take_dtype(self, place: Path, reporter: Reporter) -> None:
        """Take the dtype with which the folder's texts were begun, where a CPU's speed decides which."""
        from tithe.engine.devices import choose_device

        if self.settings.dtype != "auto" or choose_device(self.settings.device).type != "cpu":
            return
        self.dtype, note = began_with(place, self.dtype)
        keep(place, DTYPE, self.dtype)
        if note is not None:
            reporter.say(note)

    @cached_property
    def stops(self) -> frozenset[int]:
        from tithe.engine.generate import stop_ids

        return stop_ids(self.source, self.tokenizer, [self.renderer.template.turns.tail.strip()])

    @cached_property
    def sampling(self) -> dict[str, Any]:
        s = self.settings
        drawn = {"top_p": s.top_p, "seed": s.seed} if s.temperature > 0 else {}
        return {"temperature": s.temperature, "max_new_tokens": s.max_new_tokens, **drawn}

    def wanted(self, prompts: Mapping[str, Example]) -> dict[str, GenerationRequest | Problem]:
        """Prompts as token ids: those that a scorer's `given` pass would have before the response."""
        import numpy as np

        from tithe.engine.generate import GenerationRequest

        found: dict[str, GenerationRequest | Problem] = {}
        self.remarks = RemarkCounts()
        asked = [replace(example, response=Message("assistant", STAND_IN)) for example in prompts.values()]
        for key, made in zip(prompts, self.renderer.encode(asked), strict=True):
            if isinstance(made, Problem):
                found[key] = made
                continue
            self.remarks.add(made.remarks)
            ids = np.concatenate([made.lead, made.prompt])
            found[key] = (
                GenerationRequest(ids, seed_of(self.settings.seed, key))
                if len(ids)
                else Problem("the prompt has no token")
            )
        return found

    def answers(self, prompts: Mapping[str, Example], place: Path, reporter: Reporter) -> Answers:
        """Answer what the folder does not hold yet."""
        from tithe.engine.generate import GENERATION

        self.take_dtype(place, reporter)
        who = {"fingerprint": self.fingerprint, "dtype": self.dtype, "version": GENERATION, "window": self.window}
        store = TextStore(place, store_name(self.name, who | self.sampling | {"stops": sorted(self.stops)}))
        found: Answers = {}
        wanted = self.wanted(prompts)
        for sentence in remark_sentences(self.left_out):
            reporter.say(f"{self.name}: {sentence}")
        found |= {key: one for key, one in wanted.items() if isinstance(one, Problem)}
        asked = {key: one for key, one in wanted.items() if not isinstance(one, Problem)}
        names = {key: key_of(one.ids.tobytes(), str(one.seed)) for key, one in asked.items()}
        self.reused = self.stored = sum(name in store for name in names.values())
        reporter.progress(self.reused + len(found), 0)
        if self.reused < len(asked):
            found |= self.write([*asked], [*asked.values()], [*names.values()], store, reporter)
        return found | {key: store[name] for key, name in names.items() if name in store}

    def write(
        self,
        keys: Sequence[str],
        asked: Sequence[GenerationRequest],
        names: Sequence[str],
        store: TextStore,
        reporter: Reporter,
    ) -> Answers:
        """Load the model and let it answer, batch by batch; gives what it could not."""
        generator, problems, tokens = self.generator(reporter), Answers(), 0
        # All prompts are put into batches, and those that are answered left out: so the batches of a run that was
        # killed and goes on are those of a run that was not.
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
            store.flush()  # a batch is there whole or not at all, so that none is ever taken up in the middle
            self.stored = len(store)
            reporter.progress(len(todo), tokens)
        self.work = {"tokens_generated": tokens, "batches_halved": generator.halved, "pads": generator.pads}
        del generator
        gc.collect()  # the next model needs the room
        return problems

    def generator(self, reporter: Reporter) -> AnswerGenerator:
        """The model, loaded."""
        from tithe.engine.generate import AnswerGenerator, load_for_generation

        s = self.settings
        model = load_for_generation(
            self.source, device=s.device, dtype=self.dtype, trust_remote_code=s.trust_remote_code
        )
        reporter.say(f"model {self.name} ({model.parameters:,} parameters) writes on {model.device} in {self.dtype}")
        return AnswerGenerator(
            model,
            self.tokenizer,
            self.stops,
            temperature=s.temperature,
            top_p=s.top_p,
            max_new_tokens=s.max_new_tokens,
            window=self.window,
            budget=s.batch_tokens,
        )

    def describe(self) -> dict[str, Any]:
        own = {"fingerprint": self.fingerprint, "revision": self.source.revision, "dtype": self.dtype}
        stops = {"stop_ids": sorted(self.stops)}
        return own | self.sampling | {"template": self.renderer.describe()} | stops | self.work


@dataclass
class EndpointWriter:
    """A model behind an endpoint.

    Args:
        name: the endpoint's name for it.
        settings: how it writes.
        endpoint: the address.
        hold: seconds that answers may wait to be written to disk, None a few; a process that is killed loses those.
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

    def body(self, prompt_id: str, example: Example) -> dict[str, Any]:
        """The request for one prompt; a server that heeds the seed gives the same answer again."""
        s = self.settings
        return chat_body(
            self.name,
            example.prompt,
            example.tools,
            temperature=s.temperature,
            top_p=s.top_p if s.temperature > 0 else None,
            max_tokens=s.max_new_tokens,
            seed=seed_of(s.seed, prompt_id) & 0x7FFFFFFF,
        )

    def answers(self, prompts: Mapping[str, Example], place: Path, reporter: Reporter) -> Answers:
        """Ask for what the folder does not hold yet."""
        bodies = {key: self.body(key, example) for key, example in prompts.items()}
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
                for key, got in crowd(lambda key: chat(client, bodies[key]), todo, s.concurrency, client.stop):
                    if isinstance(got, Reply):
                        store.put(
                            names[key], {"text": got.text.strip(), "tokens": got.tokens, "finished": got.finished}
                        )
                        tokens += got.tokens or 0
                    else:
                        problems[key] = got
                    store.flush_now_and_then(self.hold)
                    reporter.progress(1, tokens)
            finally:
                store.flush()
                self.stored = len(store)
        self.work = {"tokens_generated": tokens, "requests_tried_again": client.tried_again}
        return problems | {key: store[name] for key, name in names.items() if name in store}

    def describe(self) -> dict[str, Any]:
        s = self.settings
        own = {"endpoint": self.address.url, "temperature": s.temperature, "top_p": s.top_p, "seed": s.seed}
        return own | {"max_new_tokens": s.max_new_tokens} | self.work
