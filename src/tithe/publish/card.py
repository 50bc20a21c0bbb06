"""Write the dataset card of a run: YAML for the hub, and what a reader must know to trust the selection."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from tithe.errors import SettingsError
from tithe.foreign import shown
from tithe.publish.plain_text import code, fenced, one_line_of, without_folders
from tithe.settings import SelectSettings

TAG = "tithe"  # says that the card, and the data beside it, are ours to replace
KEPT_FILE, DROPPED_FILE, CARD = "data/kept.jsonl", "data/dropped.jsonl", "README.md"
UNKNOWN = "unknown"
MOST_REASONS = 30
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,59}")
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M"))
# Settings that say where things are or how fast they go; the command leaves them out, as they change no choice.
_OF_THE_MACHINE = ("answers", "device", "shard", "batch_tokens", "workers", "compile", "per_token", "gate_check")
_KNOWN_AT_ONCE = ("dataset", "model")


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides the run's record.

    Args:
        kept: records in the kept file.
        dropped: records in the dropped file; None if it is not published.
        license: of the source, None if it is not known.
        source: hub id of the data set, None for files.
    """

    kept: int
    dropped: int | None = None
    license: str | None = None
    source: str | None = None


def check_license(name: str | None) -> str | None:
    """Return a licence in the hub's spelling, such as `apache-2.0`; None for `unknown`.

    Raises:
        SettingsError: it cannot be the name of a licence.
    """
    if name is None:
        return None
    plain = name.strip().lower()
    if not _LICENSE.fullmatch(plain):
        raise SettingsError(
            f"`{shown(name)}` is no licence as the hub names them", hint="for example `apache-2.0`, `cc-by-sa-3.0`"
        )
    return None if plain == UNKNOWN else plain


def hub_source(settings: Mapping[str, Any], dataset: Mapping[str, Any]) -> str | None:
    """Return the hub id of the data set; None for files."""
    name = str(settings["dataset"])
    return name if dataset.get("path") is None and _HUB_ID.fullmatch(name) else None


def front_matter(record: Mapping[str, Any], facts: CardFacts) -> str:
    """Return the YAML that the hub and `datasets` read; foreign text is quoted by the YAML writer."""
    configs: list[dict[str, Any]] = [{"config_name": "kept", "default": True, "data_files": KEPT_FILE}]
    if facts.dropped:
        configs.append({"config_name": "dropped", "data_files": DROPPED_FILE})
    fields: dict[str, Any] = {} if facts.license is None else {"license": facts.license}
    if facts.source is not None:
        fields["source_datasets"] = [facts.source]
    fields |= {
        "pretty_name": one_line_of(f"{one_line_of(title_of(record))}, selected"),
        "tags": [TAG, "data-selection", "instruction-tuning", *map(one_line_of, scorer_names(record))],
        "task_categories": ["text-generation"],
        "size_categories": [size_category(facts.kept)],
        "configs": configs,
    }
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def size_category(n: int) -> str:
    """Return the hub's name for a number of records."""
    return next((name for most, name in _SIZES if n < most), "n>10M")


def title_of(record: Mapping[str, Any]) -> str:
    """Return the name of the data set without its folder."""
    name = str(record["settings"]["dataset"])
    return name if record["dataset"].get("path") is None else PurePath(name).name or "data"


def parts_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the records of the stages, or of the one selection."""
    return list(record.get("stages") or [record])


def scorer_names(record: Mapping[str, Any]) -> list[str]:
    """Return the names of all scorers, in order."""
    return list(dict.fromkeys(name for part in parts_of(record) for name in part.get("scorers") or {}))


def write_card(record: Mapping[str, Any], facts: CardFacts) -> str:
    """Return the card of a run as Markdown.

    Args:
        record: its `run.json`.
        facts: what the record does not say.
    """
    chosen = record["selection"]
    lines = [front_matter(record, facts), f"# {code(title_of(record))}, selected", ""]
    lines += [
        f"{facts.kept:,} records of {code(title_of(record))}, chosen with "
        f"[tithe](https://pypi.org/project/tithe/) {code(record['versions']['tithe'])} out of {chosen['examples']:,} "
        f"examples. {shape_sentence(record)}",
        "",
        fenced(loading_lines(facts), "python"),
        "",
        "## How they were chosen",
        "",
        *table(("", ""), how_rows(record)),
        "",
    ]
    for part in parts_of(record):
        if part.get("scorers"):
            lines += [*scorer_lines(part), ""]
    lines += ["## What became of every example", "", *table(("", "examples"), count_rows(record)), ""]
    if found := list(damage_lines(record)):
        lines += ["## Damage", "", *found, ""]
    lines += ["## Do it again", "", fenced(command_of(record), "bash"), ""]
    lines += ["## Licence", "", license_line(facts), ""]
    return "\n".join(lines)


def shape_sentence(record: Mapping[str, Any]) -> str:
    """Say how the records were written."""
    shape = record["settings"].get("shape", "same")
    return "The records are unchanged." if shape == "same" else f"They are written in the shape {code(shape)}."


def loading_lines(facts: CardFacts) -> str:
    """Return the lines that load the data."""
    load = 'kept = load_dataset("FOLDER_OR_REPOSITORY", split="train")'
    more = '\ndropped = load_dataset("FOLDER_OR_REPOSITORY", "dropped", split="train")' if facts.dropped else ""
    return f"from datasets import load_dataset\n\n{load}{more}"


def how_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a reader asks first: ranking, selector, budget, filters, model."""
    chosen, settings = record["selection"], record["settings"]
    yield "ranked by", code(chosen["by"])
    if settings.get("pipeline"):
        yield "stages", code(settings["pipeline"])
    else:
        yield "selector", code(chosen["selector"])
    yield "budget", code(settings["keep"] if not settings.get("pipeline") else chosen["budget"])
    if settings.get("gate"):
        yield "gate", code(settings["gate"])
    for text in chosen["filters"]:
        yield "filter", code(text)
    yield "seed", code(settings.get("seed", 0))
    digest = record["dataset"].get("digest")
    if digest:
        yield "hash of the data", code(digest)


def scorer_lines(part: Mapping[str, Any]) -> Iterator[str]:
    """Yield a section on a stage's scorers, model and template."""
    name = f", stage {part['stage']}" if part.get("stage") else ""
    yield f"### Scores{name}"
    yield ""
    yield from table(("", ""), score_rows(part))


def score_rows(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the scorers of a stage with their settings, then model and template."""
    for name, settings in part["scorers"].items():
        given = ", ".join(f"{key}={value}" for key, value in settings.items())
        yield f"scorer {code(name)}", code(given)
    model, template = part.get("model") or {}, part.get("template") or {}
    for key in ("name", "revision", "fingerprint", "dtype"):
        if model.get(key):
            yield "model" if key == "name" else f"model, {key}", code(model[key])
    for key in ("template", "max_length"):
        if template.get(key):
            yield "template" if key == "template" else "tokens at most", code(template[key])


def count_rows(record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield counts that add up: kept, and dropped by reason."""
    chosen = record["selection"]
    yield "kept", f"{chosen['kept']:,}"
    reasons = list(chosen["dropped"].items())
    for reason, n in reasons[:MOST_REASONS]:
        yield f"dropped: {code(reason)}", f"{n:,}"
    if rest := reasons[MOST_REASONS:]:
        yield f"dropped: {len(rest):,} other reasons", f"{sum(n for _, n in rest):,}"
    yield "all examples", f"{chosen['examples']:,}"
    for reason, n in record["counts"]["bad_rows"].items():
        yield f"besides, rows that cannot be read: {code(reason)}", f"{n:,}"


def damage_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the estimates of damage, by a gate or by the look after a selection without one."""
    gate = next((part["gate"] for part in parts_of(record) if part.get("gate")), None)
    if gate is not None:
        yield (
            f"A gate kept {code(gate['keeps'])} of the examples before the score chose. At most about "
            f"{gate['estimated_damage_in_pool']:.0%} of the pool is damaged, as far as the model can tell."
        )
        for key, where in (("without_gate", "without a gate"), ("estimated_damage_in_selection", "behind the gate")):
            if found := gate.get(key):
                yield (
                    f"Of the selection {where}, an estimated {found['share']:.1%} is damaged "
                    f"({found['low']:.1%} to {found['high']:.1%}, 90 % interval)."
                )
        return
    look = record.get("gate_check") or {}
    if "looks_damaged" in look:
        able = "" if look["can_tell"] else ", but the model tells damaged copies badly"
        yield (
            f"No gate was used. Of a sample of {look['kept']:,} kept examples, about {look['looks_damaged']:.0%} look "
            f"damaged to the model (AUC {look['auc']:.2f} on damaged copies{able})."
        )


def command_of(record: Mapping[str, Any]) -> str:
    """Return the command that makes the selection again, without what does not change it."""
    settings, defaults = record["settings"], SelectSettings.model_fields
    words = ["tithe", "select", shlex.quote(title_of(record))]
    for name, value in settings.items():
        if name in (*_OF_THE_MACHINE, "dataset") or name not in defaults:
            continue
        default = defaults[name].get_default(call_default_factory=True)
        plain = list(default) if isinstance(default, tuple) else default
        if value == plain and name not in _KNOWN_AT_ONCE:
            continue
        words += option_of(name, value)
    return " ".join([*words, "-o", "kept.jsonl"]).replace("\n", " ").replace("\r", " ")


def option_of(name: str, value: Any) -> list[str]:
    """Return a setting as words of a command line."""
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else f"--no-{name.replace('_', '-')}"]
    if isinstance(value, list):
        joined = [",".join(map(str, value))] if name == "scorer" else value
        words = [word for one in joined for word in (flag, shlex.quote(without_folders(str(one))))]
        return words or [f"--no-{name.replace('_', '-')}"]
    return [flag, shlex.quote(without_folders(str(value)))]


def license_line(facts: CardFacts) -> str:
    """Return what is known of the licence."""
    if facts.license is not None:
        return f"The source's licence is {code(facts.license)}; it holds for the records chosen from it."
    return (
        "The licence of the source is not known, so none is given here: ask its authors before you share the records."
    )


def table(head: Sequence[str], rows: Iterator[tuple[str, str]]) -> list[str]:
    """Return a Markdown table; the cells are safe already."""
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
