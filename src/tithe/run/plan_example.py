"""Show one example as the model would read it: its tokens as text, prompt and response apart."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from tithe.data.render import EncodedExample
from tithe.printable import printable
from tithe.records import Problem
from tithe.run.method import Setup

LINES = 8  # shown of each side
LEAST, MOST = 40, 160  # characters of a line, whatever the terminal is


def rendered_example(setup: Setup) -> dict[str, Any]:
    """Return the first example of the data set as the model reads it, or why it cannot be read.

    Returns:
        `id`, `where`, and `problem`; or the texts `prompt` and `response` with special tokens as they are, their
        tokens, and how many were cut.
    """
    example, renderer = setup.source.first_records.examples[0], setup.renderer
    out: dict[str, Any] = {"id": example.id, "where": example.where}
    (encoded,) = renderer.encode([example])
    made = renderer.build("given", encoded) if isinstance(encoded, EncodedExample) else encoded
    if isinstance(made, Problem):
        return out | {"problem": made.reason}
    ids, tokenizer = made.ids.tolist(), setup.model.tokenizer
    prompt, response = (
        tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for part in (ids[: made.start], ids[made.start :])
    )
    return out | {
        "prompt": prompt,
        "response": response,
        "prompt_tokens": made.start,
        "response_tokens": made.response_tokens,
        "cut_tokens": made.cut_prompt + made.cut_response,
    }


def example_lines(example: Mapping[str, Any], width: int | None = None) -> Iterator[str]:
    """Yield the example for the terminal, clipped to its width and to a few lines of each side."""
    if "problem" in example:
        yield f"first example, {example['where']}: {example['problem']}"
        return
    cut = f", {example['cut_tokens']:,} cut" if example["cut_tokens"] else ""
    yield f"first example as the model reads it, {example['where']}{cut}:"
    columns = shutil.get_terminal_size((100, 24)).columns if width is None else width
    space = max(LEAST, min(MOST, columns)) - len("  response | ")
    for side in ("prompt", "response"):
        tokens = f"{example[f'{side}_tokens']:,} tokens"
        yield f"  {side}, {tokens}{' (scored)' if side == 'response' else ''}"
        lines = example[side].splitlines() or [""]
        # The end of a prompt shows where the response begins, so the middle is left out.
        shown = lines if len(lines) <= LINES else [*lines[: LINES - 3], None, *lines[-2:]]
        for line in shown:
            yield "    | ..." if line is None else f"    | {clip(printable(line), space)}"


def clip(line: str, space: int) -> str:
    """Cut a line to the space that there is; keep its end, too."""
    tail = space // 4
    return line if len(line) <= space else f"{line[: space - tail - 5]} ... {line[len(line) - tail :]}"
