"""A process that tokenises: `python -m tithe.runners.tokeniser DESCRIPTOR` answers requests until its pipe is closed.

The first request is a `RendererRecipe`, and its answer the description of the renderer made from it. The others are
lists of examples, and their answers the encodings. Any answer may be a `Failed` instead.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import Any

from tithe.data.render import Renderer
from tithe.engine.workers.child_process import end_with_parent
from tithe.engine.workers.worker_process import WorkerFailed
from tithe.errors import TitheError
from tithe.runners.tokenising import describe_renderer


def serve(channel: Connection) -> None:
    """Answer requests until the other end closes the pipe."""
    renderer: Renderer | None = None
    while True:
        answer: Any
        try:
            asked = channel.recv()
        except (EOFError, OSError):
            return
        try:
            if renderer is None:
                renderer = asked.make()
                answer = describe_renderer(renderer)
            else:
                answer = renderer.encode(asked)
        except TitheError as error:
            answer = WorkerFailed(str(error), error.hint, expected=True)
        except Exception as error:  # sent back: the run raises it there
            answer = WorkerFailed(f"unexpected {type(error).__name__}: {error}", None, expected=False)
        channel.send(answer)


if __name__ == "__main__":
    end_with_parent()
    serve(Connection(int(sys.argv[1])))
