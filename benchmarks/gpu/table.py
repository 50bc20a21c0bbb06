"""Results as Markdown."""

from __future__ import annotations

from typing import Any

HEAD = "| contender | tokens/s | of peak | times the loop | peak GB | 52,002 records | largest difference of a mean |"


def table(results: dict[str, Any]) -> str:
    """One table for each model, and one for the ways from hidden states to likelihoods."""
    machine, data = results["machine"], results["data"]
    lines = [
        f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}, {results['dtype']}; "
        f"random weights, {data['records']:,} records of `{data['file']}` ({data['tokens']:,} tokens in "
        f"{data['passes']:,} passes, tokenizer {data['tokenizer']}). Peak: {results['peak_tflops']:.3g} TFLOP/s, a "
        f"square product. `{results['command']}`" + ("" if results["finished"] else " (**cut short**)")
    ]
    for entry in results["models"]:
        lines += ["", *of_model(entry), "", *of_head(entry), "", *of_time(entry)]
    return "\n".join(lines)


def of_model(entry: dict[str, Any]) -> list[str]:
    shape = entry["shape"]
    title = f"{shape['name']}: {shape['parameters']:,} parameters, vocabulary {shape['vocabulary']:,}"
    if shape["vocabulary"] != shape["vocabulary_of_the_original"]:
        title += f" (the original's: {shape['vocabulary_of_the_original']:,})"
    lines = [title, "", HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    return lines + [row(name, one) for name, one in entry["contenders"].items()]


def row(name: str, one: dict[str, Any]) -> str:
    if "turns" not in one:
        return f"| {name} | {one.get('failed') or one.get('not_run')} | | | | | |"
    cells = [
        f"{one['tokens_per_second']:,.0f}",
        f"{one['utilisation']:.1%}",
        "" if one["times_the_loop"] is None else f"{one['times_the_loop']:.1f}",
        "" if one["peak_gb"] is None else f"{one['peak_gb']:.1f}",
        f"{one['projected_seconds']:,.0f} s",
        f"{one['difference']['mean']:.2g}" + (" **disagrees**" if one["agrees"] is False else "")
        if one["difference"]
        else "",
    ]
    return f"| {name} | " + " | ".join(cells) + " |"


def of_head(entry: dict[str, Any]) -> list[str]:
    head = "| from hidden states to likelihoods | ms | of peak | GB | largest difference |"
    lines = [head, "|---" * (head.count("|") - 1) + "|"]
    for name, one in entry.get("head", {}).items():
        if "seconds" not in one:
            lines.append(f"| {name} | {one.get('failed') or one.get('not_run')} | | | |")
            continue
        memory = "" if one["more_gb"] is None else f"{one['more_gb']:.2f}"
        off = f"{one['largest_difference']:.2g}"
        lines.append(f"| {name} | {one['seconds'] * 1e3:.1f} | {one['of_peak']:.1%} | {memory} | {off} |")
    return lines


def of_time(entry: dict[str, Any]) -> list[str]:
    found = entry.get("time_goes", {})
    if "longest" not in found:
        return [f"Where the time of the engine goes: {found.get('failed') or 'time was up'}"]
    lines = [f"The engine, {found['batches']} batches: the device is busy {found['busy']:.0%}", ""]
    lines += ["| of that | calls | in |", "|---|---|---|"]
    return lines + [f"| {one['share']:.1%} | {one['calls']} | `{one['name']}` |" for one in found["longest"][:10]]
