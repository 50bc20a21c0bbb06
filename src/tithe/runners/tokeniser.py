"""A process that tokenises: `python -m tithe.runners.tokeniser`. It reads requests from stdin, and ends with it.

    request   a line of JSON: first what it takes to make the renderer, then lists of examples
    answer    a line of JSON: first `{"ready": the renderer's own description}`, then `{"bytes": n, "problems": {place:
              reason}, "texts": {place: texts}, "remarks": {place: remarks}}` with n bytes behind it: (examples, 4)
              lengths and all ids one after the other, both int32; or `{"error": sentence}`

Plain numbers go between the processes, not objects, and nothing is unpickled.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tithe.data.authors import CherryRenderer, SuperfilteringRenderer
from tithe.data.dialogue import CpqsRenderer
from tithe.data.render import Encoded, Renderer, RenderSettings, TemplateRenderer
from tithe.data.rendered import NOTHING_ODD, Remarks, Rendered
from tithe.engine.workers.orphan import end_with_parent
from tithe.errors import TitheError
from tithe.records import Example, Message, Problem

RENDERERS = {one.__name__: one for one in (TemplateRenderer, CherryRenderer, SuperfilteringRenderer, CpqsRenderer)}
PIECES = ("lead", "prompt", "response", "after")  # of an `Encoded`


def made(recipe: Mapping[str, Any]) -> Renderer:
    """The renderer that the run has, from the same files."""
    from tithe.engine.sources import ModelSource, load_tokenizer

    if not recipe["trust_remote_code"]:
        without_torch()
    adapter = recipe["adapter"]
    source = ModelSource(recipe["model"], Path(recipe["folder"]), None, None if adapter is None else Path(adapter))
    tokenizer = load_tokenizer(source, trust_remote_code=recipe["trust_remote_code"])
    return RENDERERS[recipe["renderer"]](tokenizer, RenderSettings(**recipe["settings"]))


def without_torch() -> None:
    """Torch is imported by transformers wherever it is installed: 270 MB that a tokenizer has no use for."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)


def can_send(example: Example) -> bool:
    """Whether JSON gives it back as it was: texts are, what tools have in them need not be."""
    return not example.tools and not any(message.tool_calls for message in (*example.prompt, example.response))


def sent(example: Example) -> list[Any]:
    """An example without what rendering does not look at."""
    turns = [
        [one.role, one.content, one.reasoning, one.name, one.tool_call_id]
        for one in (*example.prompt, example.response)
    ]
    return [turns, example.instruction, example.input]


def received(row: Sequence[Any]) -> Example:
    turns, instruction, given = row
    *prompt, response = (
        Message(role, content, reasoning, (), name, call_id) for role, content, reasoning, name, call_id in turns
    )
    return Example("", 0, 0, tuple(prompt), response, instruction, given)


def packed(encoded: Sequence[Encoded | Problem]) -> tuple[dict[str, Any], bytes]:
    """An answer's line and what follows it."""
    problems = {i: one.reason for i, one in enumerate(encoded) if isinstance(one, Problem)}
    parts = [[getattr(one, name) for name in PIECES] for one in encoded if isinstance(one, Encoded)]
    lengths = np.zeros((len(encoded), len(PIECES)), dtype=np.int32)
    lengths[[i for i in range(len(encoded)) if i not in problems]] = [[len(ids) for ids in each] for each in parts] or 0
    ids = np.concatenate([np.empty(0, np.int32), *(ids for each in parts for ids in each)]).astype(np.int32)
    body = lengths.tobytes() + ids.tobytes()
    good = {i: one for i, one in enumerate(encoded) if isinstance(one, Encoded)}
    texts = {i: astuple(one.text)[:-1] for i, one in good.items() if one.text is not None}
    remarks = {i: astuple(one.remarks) for i, one in good.items() if one.remarks is not NOTHING_ODD}
    return {"bytes": len(body), "problems": problems, "texts": texts, "remarks": remarks}, body


def unpacked(line: Mapping[str, Any], body: bytes, count: int) -> list[Encoded | Problem]:
    """What `packed` was given; the ids are views of the answer."""
    lengths = np.frombuffer(body, np.int32, count * len(PIECES)).reshape(count, len(PIECES))
    ids = np.frombuffer(body, np.int32, offset=lengths.nbytes)
    ends = np.cumsum(lengths).reshape(lengths.shape).tolist()
    found, at = list[Encoded | Problem](), 0
    for i, (a, b, c, d) in enumerate(ends):
        reason = line["problems"].get(str(i))
        if reason is not None:
            found.append(Problem(reason))
        else:
            texts, said = line["texts"].get(str(i)), line["remarks"].get(str(i))
            text = None if texts is None else Rendered(*texts)
            remarks = NOTHING_ODD if said is None else Remarks(tuple(said[0]), tuple(said[1]), *said[2:])
            found.append(Encoded(ids[at:a], ids[a:b], ids[b:c], ids[c:d], text=text, remarks=remarks))
        at = d
    return found


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until there are no more requests."""
    renderer: Renderer | None = None
    for line in requests:
        body = b""
        try:
            asked = json.loads(line)
            if renderer is None:
                renderer = made(asked)
                said = dict[str, Any](ready=renderer.describe())
            else:
                said, body = packed(renderer.encode([received(row) for row in asked]))
        except TitheError as error:
            said = {"error": str(error)}
        except Exception as error:  # it is told, and ends the run there
            said = {"error": f"unexpected {type(error).__name__}: {error}"}
        answers.write(json.dumps(said, default=str).encode() + b"\n" + body)
        answers.flush()


def main() -> None:
    end_with_parent()
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what libraries print does not mix with the answers
        try:
            serve(sys.stdin.buffer, answers)
        except BrokenPipeError:  # nobody is there to be answered
            os._exit(1)


if __name__ == "__main__":
    main()
