"""Explain a score: the scorer's formula, what the model answered, and the arithmetic between the two."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence

from tithe.look.shown_record import ShownScore, Value
from tithe.records import Answer, Count, Margin, Nll, Options, Problem, States, Vector
from tithe.runners.local import ScoredWindow, resolve_answers
from tithe.scorers.base import Scorer
from tithe.selectors.filters import Filter

# The formulas of scorers that compare mean losses, with a slot for each; what fills a slot is what the scorer reads.
ARITHMETIC: Mapping[str, str] = {
    "ifd": "{given} / {alone}",
    "superfiltering": "exp({given} - {alone})",
    "perplexity": "exp({given})",
}
FORMULA = re.compile(r"^Formula:\s*(.*?)(?=^\w+:|^$|\Z)", re.MULTILINE | re.DOTALL)


def shown_scores(scorers: Mapping[str, Scorer], scored: ScoredWindow) -> Sequence[ShownScore]:
    """Return every scorer's number for the one record of a window, with its parts."""
    found = []
    for (name, scorer), slots in zip(scorers.items(), scored.window.slots[0], strict=False):
        answers = resolve_answers(slots, scored.answers)
        value = scored.scores[0][name]
        more = {key: one for key, one in scored.more[0].items() if key.removeprefix(f"{name}_") in more_names(scorer)}
        failed = isinstance(value, Problem)
        found.append(
            ShownScore(
                name,
                None if isinstance(value, Problem) else float(value),
                value.reason if isinstance(value, Problem) else None,
                scorer.unit,
                formula_of(scorer),
                None if failed else arithmetic(scorer, answers),
                {ask: numbers(answer) for ask, answer in answers.items() if not isinstance(answer, Problem)},
                more,
                None if isinstance(value, Problem) else dropping_filter(scorer, float(value)),
            )
        )
    return found


def more_names(scorer: Scorer) -> tuple[str, ...]:
    return (*scorer.also, *scorer.labels)


def formula_of(scorer: Scorer) -> str:
    """Return the formula in a scorer's docstring, on one line; empty if it has none."""
    found = FORMULA.search(inspect.getdoc(type(scorer)) or "")
    return " ".join(found[1].split()) if found else ""


def arithmetic(scorer: Scorer, answers: Mapping[str, Answer | Problem]) -> str | None:
    """Return the formula with the mean losses filled in, over the tokens that the scorer compares.

    None for a scorer whose formula is not in `ARITHMETIC`.
    """
    pattern = ARITHMETIC.get(scorer.name)
    losses = {name: answer for name, answer in answers.items() if isinstance(answer, Nll)}
    if pattern is None or len(losses) < len(answers):
        return None
    # As in the scorers: the first token counts in neither pass if only one of them could score it.
    same = getattr(scorer, "same_tokens", False) and "alone" in losses
    if same and losses["alone"].tokens < losses["given"].tokens:
        losses["given"] = losses["given"].without_first()
    return pattern.format(**{name: f"{one.mean:.4f}" for name, one in losses.items()})


def numbers(answer: Answer) -> dict[str, Value]:
    """Return the numbers of an answer by name; of long vectors only the length."""
    match answer:
        case Nll():
            return {"mean": answer.mean, "tokens": answer.tokens, "total": answer.total}
        case Count():
            return {"prompt": answer.prompt, "response": answer.response}
        case Margin():
            return {"margin": answer.value, "probability": answer.probability}
        case Options():
            return {"log_probs": [float(one) for one in answer.log_probs]}
        case Vector():
            return {"dimensions": len(answer.values)}
        case States():
            return {"shape": list(answer.values.shape)}


def dropping_filter(scorer: Scorer, value: float) -> str | None:
    """Return the scorer's own filter if it drops this score."""
    own = scorer.default_drop
    return own if own is not None and Filter.parse(own).hits(value) else None
