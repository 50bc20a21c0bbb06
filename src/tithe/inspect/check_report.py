"""Show what a check found: in the terminal, as Markdown, or as one page. All are made of the same sections."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as Grid

from tithe.data.outfile import atomic
from tithe.errors import SettingsError, brief
from tithe.inspect.contents import QUANTILES
from tithe.inspect.languages import UNKNOWN
from tithe.inspect.limits import RATES, percent
from tithe.printable import counted, printable
from tithe.report.page import Section, write_page
from tithe.report.terminal import console, say

FEW, MANY = 2, 20  # groups, places and matches shown in the terminal, and on a page
SHOWN = 70  # characters of a text in the terminal
LANGUAGES = 8
SUFFIXES = (".html", ".md", ".json")
_MARKS = re.compile(r"([\\`*_\[\]|#~])")


def sections(record: Mapping[str, Any]) -> Iterator[Section]:
    """Yield the sections of the whole report."""
    judged = record["limits"] or "baseline" in record
    passed = [("better", f"passed: {passed_text(record)}")] if judged else []
    yield Section("", [headline(record)], verdicts=[("worse", said) for said in record["failures"]] or passed)
    yield Section("Rates", skipped_lines(record), "note", rows=rate_rows(record))
    yield Section("Lengths", cut_lines(record), rows=length_rows(record))
    if record["bad_rows"]:
        head = ["rows", "reason", "where"]
        rows = [
            [f"{one['count']:,}", one["reason"], places(one["at"], one["count"], MANY)] for one in record["bad_rows"]
        ]
        yield Section("Bad rows", rows=[head, *rows])
    yield from duplicate_sections(record)
    if "contamination" in record:
        yield Section("Contamination", rows=contamination_rows(record["contamination"]))
    yield Section("What is in it", content_lines(record))
    yield Section("Columns", rows=[["column", "records"], *([name, f"{n:,}"] for name, n in record["columns"].items())])
    if record["notes"]:
        yield Section("Notes of the loader", record["notes"])
    yield Section("Settings", text=json.dumps(record["settings"], indent=2, ensure_ascii=False))


def duplicate_sections(record: Mapping[str, Any]) -> Iterator[Section]:
    exact = record["duplicates"]
    if exact["groups"]:
        rows = [
            [f"{one['examples']:,}", one["at"], places(one["also_at"], one["examples"] - 1, MANY), one["text"]]
            for one in exact["largest"]
        ]
        line = group_line(exact, "are equal")
        yield Section("Exact duplicates", [line], rows=[["examples", "first", "also at", "text"], *rows])
    near = record.get("near_duplicates")
    if near and near["groups"]:
        head = ["similarity", "where", "text", "like", "its text"]
        pairs = [
            [f"{like['similarity']:.2f}", like["at"], like["text"], one["at"], one["text"]]
            for one in near["largest"]
            for like in one["like"]
        ]
        line = f"{group_line(near, 'are similar')}, from {near['threshold']:g}: {near['similarity']}"
        yield Section("Near-duplicates", [line], rows=[head, *pairs])


def headline(record: Mapping[str, Any]) -> str:
    data, counts = record["dataset"], record["counts"]
    columns = ", ".join(record["columns"])
    return (
        f"{data['source']}: {data['format']} ({columns}), {counted(counts['records'], 'record')}, "
        f"{counted(counts['examples'], 'example')}"
    )


def passed_text(record: Mapping[str, Any]) -> str:
    kept = [f"{counted(len(record['limits']), 'limit')} kept"] if record["limits"] else []
    return ", ".join([*kept, *(["nothing grew over the baseline"] if "baseline" in record else [])])


def rate_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of rates: count, share, and limit and baseline if there are any."""
    limits, baseline = record["limits"], record.get("baseline", {}).get("rates")
    head = ["", "count", "of", "share", *(["limit"] if limits else []), *(["baseline"] if baseline else [])]
    rows = [head]
    for name, rate in record["rates"].items():
        row = [label(name, record), f"{rate['count']:,}", f"{rate['of']:,} {RATES[name][1]}", percent(rate["rate"])]
        if limits:
            row.append(limits.get(name, ""))
        if baseline:
            one = baseline.get(name, {})
            before = one.get("before")
            row.append(
                ("" if before is None else percent(before)) + (" (not compared)" if "not_compared" in one else "")
            )
        rows.append(row)
    return rows


def label(name: str, record: Mapping[str, Any]) -> str:
    """Return the name of a rate, with what it was measured by."""
    what = RATES[name][0]
    if name == "near_duplicates":
        return f"{what}, from {record['near_duplicates']['threshold']:g}"
    if name == "truncated":
        cut = record["truncation"]
        return f"{what} at {cut['max_length']:,} {cut['unit']}"
    if name == "other_language":
        languages = record["languages"]
        return f"in another {languages['kind']} than {languages['main'] or UNKNOWN}"
    return what


def skipped_lines(record: Mapping[str, Any]) -> list[str]:
    """Return what was not looked for, and which rates could not be compared."""
    said = [f"not looked for: {RATES[name][0]}: {why}" for name, why in record["skipped"].items()]
    compared = record.get("baseline", {}).get("rates", {})
    return said + [
        f"not compared with the baseline: {RATES[name][0]}: {one['not_compared']}"
        for name, one in compared.items()
        if "not_compared" in one
    ]


def length_rows(record: Mapping[str, Any]) -> list[list[str]]:
    rows = [
        [f"{one['what']}, {one['unit']}", *("-" if one[name] is None else f"{one[name]:,.0f}" for name in QUANTILES)]
        for one in record["lengths"]
    ]
    return [["", *QUANTILES], *rows]


def cut_lines(record: Mapping[str, Any]) -> list[str]:
    """Return how examples are cut, in sentences."""
    cut = record.get("truncation")
    if cut is None or cut["unit"] == "characters":
        return []
    said = [
        f"at {cut['max_length']:,} tokens of {cut['model']}, template {cut['template']}: "
        f"{counted(cut['responses_cut'], 'response')} and {counted(cut['prompts_cut'], 'prompt')} cut "
        f"({counted(cut['tokens_cut'], 'token')}), {counted(cut['left_out'], 'example')} left out, as nothing of the "
        "response fits"
    ]
    return said + [f"cannot be tokenised, {n:,}: {why}" for why, n in cut["problems"].items()]


def content_lines(record: Mapping[str, Any]) -> list[str]:
    """Return languages, roles, turns and parts, a sentence each."""
    counts, languages = record["counts"], record["languages"]
    total = max(1, counts["examples"])
    known = [f"{name} {percent(n / total)}" for name, n in list(languages["examples"].items())[:LANGUAGES]]
    rest = len(languages["examples"]) - len(known)
    said = [f"{languages['kind']}s, by {languages['by']}: {', '.join(known)}" + (f", {rest} more" if rest > 0 else "")]
    said.append("roles: " + ", ".join(f"{name} {n:,}" for name, n in record["roles"].items()))
    turns = record["assistant_turns"]
    said.append("assistant turns: " + ", ".join(f"{n} in {counted(times, 'example')}" for n, times in turns.items()))
    parts = [f"{name} {n:,}" for name, n in record["examples_with"].items()]
    return said + ([f"examples with: {', '.join(parts)}"] if parts else [])


def contamination_rows(found: Mapping[str, Any]) -> list[list[str]]:
    rows = [["file", "items", "items hit", "examples hit", "for example"]]
    for name, one in found["against"].items():
        worst = "; ".join(
            f"{match['example']} and {match['item']}: {brief(match['text'])}" for match in one["worst"][:3]
        )
        rows.append([name, f"{one['items']:,}", f"{one['items_hit']:,}", f"{one['examples_hit']:,}", worst])
    return rows


def group_line(found: Mapping[str, Any], are: str) -> str:
    more = f", the largest {MANY} here" if found["groups"] > MANY else ""
    return f"{counted(found['examples'], 'example')} {are} to an earlier one, {counted(found['groups'], 'group')}{more}"


def places(where: Sequence[str], count: int, most: int) -> str:
    """Return the first places, and how many more there are."""
    more = f", and {count - most:,} more" if count > min(most, len(where)) and count > most else ""
    return ", ".join(where[:most]) + more


def show_check(record: Mapping[str, Any]) -> None:
    """Print the report to the terminal: one page of it."""
    out = console()
    say(out, headline(record))
    for table in (rate_rows(record), length_rows(record)):
        grid = Grid(*table[0], box=None, pad_edge=False)
        for column in grid.columns[1:]:
            column.justify = "right"
        for row in table[1:]:
            grid.add_row(*row)
        out.print(grid)
    for line in (*cut_lines(record), *content_lines(record)):
        say(out, line)
    for one in record["bad_rows"]:
        say(out, f"bad rows, {one['count']:,}: {one['reason']}, at {places(one['at'], one['count'], FEW)}")
    for line in group_lines(record):
        say(out, line)
    for name, one in record.get("contamination", {}).get("against", {}).items():
        for match in one["worst"][:FEW]:
            say(out, f"{name}: {match['example']} and {match['item']}: {brief(match['text'], SHOWN)}")
    for line in (*record["notes"], *skipped_lines(record)):
        say(out, line)
    if record["limits"] or "baseline" in record:
        say(out, "failed" if record["failures"] else f"passed: {passed_text(record)}")


def group_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the largest groups of duplicates, in a line each."""
    for one in record["duplicates"]["largest"][:FEW]:
        also = places(one["also_at"], one["examples"] - 1, FEW)
        yield f"exact duplicates: {one['at']}, {also}: {brief(one['text'], SHOWN)}"
    for one in record.get("near_duplicates", {}).get("largest", ())[:FEW]:
        also = places([f"{like['at']} ({like['similarity']:.2f})" for like in one["like"]], one["examples"] - 1, FEW)
        yield f"near-duplicates: {one['at']}, {also}: {brief(one['text'], SHOWN)}"


def markdown(record: Mapping[str, Any]) -> str:
    """Return the report as Markdown; nothing that the data says is markup in it."""
    lines = [f"# Check of {plain(record['dataset']['source'])}", ""]
    for part in sections(record):
        lines += [f"## {part.title}", ""] if part.title else []
        lines += [f"- {plain(line)}" for line in part.lines]
        lines += [f"- **{'failed' if kind == 'worse' else 'ok'}**: {plain(line)}" for kind, line in part.verdicts]
        lines += [""] if part.lines or part.verdicts else []
        if part.rows:
            head, *rows = [[plain(cell) for cell in row] for row in part.rows]
            lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
            lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
        if part.text:
            lines += [*("    " + printable(line) for line in part.text.splitlines()), ""]
    return "\n".join(lines)


def plain(text: str) -> str:
    """Escape what Markdown or HTML would read as markup."""
    return _MARKS.sub(r"\\\1", html.escape(printable(text), quote=False))


def demand_suffix(path: Path) -> None:
    """Refuse a file name that does not say what to write.

    Raises:
        SettingsError: it ends in none of `.html`, `.md` and `.json`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SettingsError(
            f"a report is written as {', '.join(SUFFIXES)}, not to `{path}`", hint=f"`-o {path.stem or 'check'}.html`"
        )


def write_report(record: Mapping[str, Any], path: Path, *, overwrite: bool = False) -> None:
    """Write the report in the form that the suffix says.

    Raises:
        OutputError: the file exists or cannot be written.
        SettingsError: another suffix.
    """
    demand_suffix(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        write_page(path, f"Check of {record['dataset']['source']}", [*sections(record)], overwrite=overwrite)
        return
    text = markdown(record) if suffix == ".md" else json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n"
    with atomic(path, overwrite=overwrite) as stream:
        stream.write(text.encode("utf-8", "backslashreplace"))
