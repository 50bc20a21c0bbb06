"""Show one record as the model reads it: through the renderer, planner, engine and scorers that a run uses."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tithe.data.counts import RemarkCounts, remark_sentences
from tithe.data.render import EncodedExample, Renderer, TemplateRenderer
from tithe.data.rendered import Rendered
from tithe.data.templates import TEXT_TEMPLATES
from tithe.engine.model_source import find_model
from tithe.errors import ModelError, TemplateError, did_you_mean
from tithe.look.find_record import Wanted, find_record
from tithe.look.page_data import parts_of, prompt_of
from tithe.look.record_text import ShownRecord
from tithe.look.score_parts import shown_scores
from tithe.look.shown_record import ShownPass, Token
from tithe.look.token_losses import aligned, pieces
from tithe.planner import Slot, Window
from tithe.records import Answer, Ask, Example, Nll, Pass, Problem
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache
from tithe.run.method import Method, Setup, set_up
from tithe.run.score import Scoring
from tithe.run.source import DataSource
from tithe.runners.local import LocalRunner, ScoredWindow
from tithe.scorers.base import Scorer, alone, given
from tithe.settings import ScoreSettings, check_inherited

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GIVEN_ONLY = ("cpqs-paper",)  # presets whose renderer makes no `alone` pass
LOSSES = "losses of this record"  # not a name that a scorer of a run can have
MOST_PASSES = 3  # with worked examples or questions, whose texts are shown
SCORES_NEED = "losses and scores need the weights of a model: `--model`"


@dataclass(frozen=True)
class BothLosses(Scorer):
    """Asks for the losses that are shown, whatever the scorers of the run read; its own score is not shown."""

    name: ClassVar[str] = LOSSES
    unit: ClassVar[str] = "none"
    reads: ClassVar[str] = "given, alone: nll"

    both: bool = True

    def asks(self, example: Example) -> dict[str, Ask]:
        passes = {"given": given(example), **({"alone": alone(example)} if self.both else {})}
        return {name: Ask(spec, "nll") for name, spec in passes.items()}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        return 0.0


def show(
    settings: ScoreSettings,
    wanted: Wanted,
    *,
    losses: bool = True,
    reporter: Reporter | None = None,
) -> ShownRecord:
    """Show one record.

    Args:
        settings: settings of scoring; without a model, only the text is shown.
        wanted: which record.
        losses: read the losses and scores with the model's weights; False needs only its tokenizer.
        reporter: prints progress and notes.

    Raises:
        TitheError: there is no such record, or a run with these settings would fail.
    """
    wanted.check()
    reporter = reporter or Reporter()
    source = DataSource.open(settings)
    example, turns = find_record(source.dataset, wanted)
    if settings.model is None:
        found = text_of(settings, example)
    elif losses:
        found = read_record(settings, source, example, reporter)
    else:
        found = tokens_of(settings, source, example)
    source.input_check.check()
    notes = [*dict.fromkeys((*example.notes, *found.pop("notes")))]
    place: dict[str, Any] = {"row": example.row, "turn": example.turn, "turns": turns, "where": example.where}
    return ShownRecord(id=example.id, source=source.dataset.source, notes=notes, **place, **found)


def text_of(settings: ScoreSettings, example: Example) -> dict[str, Any]:
    """Return what can be shown without a tokenizer: the text of a plain template, or the messages.

    Raises:
        TemplateError: the template does not exist.
    """
    name = settings.template
    if name not in TEXT_TEMPLATES:
        if name not in ("auto", "chat") and not Path(name).exists():
            raise TemplateError(f"unknown template `{name}`", hint=did_you_mean(name, (*TEXT_TEMPLATES, "chat")))
        why = f"the template `{name}` depends on the model's tokenizer, so the messages stand here as they were read"
        parts = [Token(text, part) for part, text in (*prompt_of(example), *parts_of(example.response))]
        return {"tokens": parts, "notes": [why, SCORES_NEED]}
    rendered = TEXT_TEMPLATES[name].render(example)
    described = {"template": TEXT_TEMPLATES[name].describe(), "notes": [SCORES_NEED]}
    if isinstance(rendered, Problem):
        parts = [Token(text, part) for part, text in (*prompt_of(example), *parts_of(example.response))]
        return {"tokens": parts, "problem": rendered.reason, **described}
    texts = {"prompt": rendered.prompt, "response": rendered.response, "tail": rendered.tail}
    return {"tokens": [Token(text, part) for part, text in texts.items() if text], **described}


def tokens_of(settings: ScoreSettings, source: DataSource, example: Example) -> dict[str, Any]:
    """Return what the model's tokenizer tells; no weights are read."""
    method = Method.of(settings)
    check_inherited(settings, list(method.scorers.values()))
    setup = set_up(settings.model_copy(update={"answers": None}), method=method, source=source, weights=False)
    mine = {LOSSES: BothLosses(settings.preset not in GIVEN_ONLY)}
    runner = LocalRunner(mine, setup.renderer, None, {}, per_token=True, readouts=setup.readouts)
    window = runner.plan([example])
    return {
        "passes": shown_passes(window, [*mine], {}, setup.model.tokenizer),
        "model": {"name": setup.model.name},
        **rendered_part(setup, window, example, {}),
    }


def read_record(settings: ScoreSettings, source: DataSource, example: Example, reporter: Reporter) -> dict[str, Any]:
    """Return everything: the record is read and scored as in a run, and nothing is stored."""
    method = Method.of(settings)
    check_inherited(settings, list(method.scorers.values()))
    mine = {LOSSES: BothLosses(settings.preset not in GIVEN_ONLY)}
    # One record needs no measurement of how many passes run best at once.
    own = settings.model_copy(update={"per_token": True, "workers": settings.workers or 1})
    full = Method(own, {**method.scorers, **mine})
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tithe-")), "run")
        place.mkdir()
        try:
            setup = set_up(own, method=full, source=source, folder=place)
        except ModelError as error:
            raise ModelError(str(error), hint=without_weights_hint(settings) or error.hint) from error
        engines = stack.enter_context(closing(EngineCache(reporter)))
        for note in setup.notes:
            reporter.say(note)
        scoring = Scoring(setup, engines, reporter, place)
        runner = scoring.runner
        if runner.tokenisers is not None:
            stack.callback(runner.tokenisers.stop)
        runner.scorers = scoring.bench.prepare(full.scorers)
        with closing(runner.run([example])) as windows:
            scored = next(windows)
        tokenizer = setup.model.tokenizer
        return {
            "passes": shown_passes(scored.window, [*full.scorers], scored.answers, tokenizer),
            "scores": shown_scores({name: one for name, one in runner.scorers.items() if name != LOSSES}, scored),
            "model": {"name": setup.model.name, "dtype": setup.model.weights_dtype},
            **rendered_part(setup, scored.window, example, own_losses(scored)),
        }


def without_weights_hint(settings: ScoreSettings) -> str | None:
    """Return the hint that the tokenizer alone is enough, if the model has one."""
    try:
        find_model(str(settings.model), weights=False)
    except ModelError:
        return None
    return "`--no-losses` shows what the tokenizer alone can tell"


def own_losses(scored: ScoredWindow) -> dict[str, Sequence[float]]:
    """Return the losses of the record's response tokens: pass -> one loss for each scored token."""
    found: dict[str, Sequence[float]] = {}
    for name, slot in scored.window.slots[0][-1].items():
        answer = slot if isinstance(slot, Problem) else scored.answers[slot.index, slot.readout]
        if isinstance(answer, Nll) and answer.per_token is not None:
            found[name] = answer.per_token.tolist()
    return found


def rendered_part(
    setup: Setup, window: Window, example: Example, losses: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Return tokens, template, problem and notes of the record."""
    (encoded,) = setup.renderer.encode([example])
    (made,) = window.given
    tokenizer = setup.model.tokenizer
    notes: list[str] = []
    if isinstance(encoded, Problem):
        tokens = [Token(text, part) for part, text in (*prompt_of(example), *parts_of(example.response))]
    else:
        tokens = tokens_in(encoded, made, tokenizer, losses)
        counts = RemarkCounts()
        counts.add(encoded.remarks)
        notes = [sentence.partition(", in 1 of 1 ")[0] for sentence in remark_sentences(counts.as_dict())]
        tail = tail_of(setup.renderer, example)
        tokens += [Token(tail, "tail")] if tail and not setup.settings.eos else []
    problem = made.reason if isinstance(made, Problem) else None
    return {"tokens": tokens, "template": setup.renderer.describe(), "problem": problem, "notes": notes}


def tail_of(renderer: Renderer, example: Example) -> str:
    """Return what the template writes after the response; empty if it writes nothing."""
    rendered = renderer.render(example) if isinstance(renderer, TemplateRenderer) else None
    return rendered.tail if isinstance(rendered, Rendered) else ""


def tokens_in(
    encoded: EncodedExample,
    made: Pass | Problem,
    tokenizer: PreTrainedTokenizerBase,
    losses: Mapping[str, Sequence[float]],
) -> list[Token]:
    """Return the tokens of prompt and response in order, those that are cut among them."""
    ids = encoded.ids.tolist()
    prompt_at, response_at = len(encoded.lead), len(encoded.lead) + len(encoded.prompt)
    kept_from, kept_to = prompt_at, len(ids)
    if isinstance(made, Pass):
        kept_from, kept_to = prompt_at + made.cut_prompt, len(ids) - made.cut_response
        read = np.concatenate([encoded.lead, encoded.ids[kept_from:kept_to]])
        assert np.array_equal(read, made.ids), "the pass is what is left of the encoding"
    scored = kept_to - response_at
    values = {name: aligned(losses[name], scored) if name in losses else [None] * scored for name in ("given", "alone")}
    special = special_ids(tokenizer)
    found = []
    for i, (id_, text) in enumerate(zip(ids, pieces(tokenizer, ids), strict=True)):
        part = "lead" if i < prompt_at else "prompt" if i < response_at else "response"
        cut = isinstance(made, Pass) and i >= prompt_at and not kept_from <= i < kept_to
        place = i - response_at
        both = {name: each[place] for name, each in values.items()} if 0 <= place < scored else {}
        found.append(Token(text, part, id_, cut, id_ in special, **both))
    return found


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids of a tokenizer's special tokens."""
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def shown_passes(
    window: Window,
    scorers: Sequence[str],
    answers: Mapping[tuple[int, str], Any],
    tokenizer: PreTrainedTokenizerBase,
) -> list[ShownPass]:
    """Return the distinct passes of the record, `given` and `alone` first."""
    asked: dict[int, list[str]] = {}
    for name, slots in zip(scorers, window.slots[0], strict=True):
        for ask, slot in slots.items():
            if isinstance(slot, Slot):
                asked.setdefault(slot.index, []).append(f"{name}: {ask}")
    order = sorted(asked, key=lambda i: ("given", "alone", "shown", "rated").index(window.kinds[i]))
    texts = [i for i in order if window.kinds[i] in ("shown", "rated")][:MOST_PASSES]
    found = []
    for index in order:
        one = window.passes[index]
        each = (answers.get((index, name)) for name in ("nll_tokens", "nll"))
        answer = next((value for value in each if isinstance(value, Nll)), None)
        cut = {"prompt": one.cut_prompt, "response": one.cut_response, "worked examples": one.cut_shots}
        names = [name for name in asked[index] if not name.startswith(LOSSES)]
        found.append(
            ShownPass(
                window.kinds[index],
                names,
                len(one.ids),
                one.start,
                one.shots,
                {what: n for what, n in cut.items() if n},
                answer.mean if answer is not None and answer.tokens else None,
                answer.tokens if answer is not None else None,
                pass_tokens(one, tokenizer) if index in texts else (),
            )
        )
    return found


def pass_tokens(one: Pass, tokenizer: PreTrainedTokenizerBase) -> list[Token]:
    """Return the tokens of a pass with worked examples or a question."""
    ids, special = one.ids.tolist(), special_ids(tokenizer)
    parts = ["shot"] * one.shots + ["prompt"] * (one.start - one.shots) + ["response"] * one.response_tokens
    texts = pieces(tokenizer, ids)
    return [Token(text, part, id_, special=id_ in special) for text, part, id_ in zip(texts, parts, ids, strict=True)]
