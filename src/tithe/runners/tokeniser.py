"""A process that tokenises: `python -m tithe.runners.tokeniser DESCRIPTOR` answers requests until nobody asks any more.

The first request is a `RendererRecipe`, answered by the renderer's own description; the others are examples, answered
by their encodings. Any answer may be a `WorkerFailed` instead.
"""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import Any

from tithe.data.render import Renderer
from tithe.engine.workers.child_process import end_with_parent
from tithe.engine.workers.worker_process import WorkerFailed
from tithe.errors import TitheError
from tithe.runners.tokenising import described


def serve(channel: Connection) -> None:
    """Answer until there are no more requests."""
    renderer: Renderer | None = None
    while True:
        answer: Any
        try:
            asked = channel.recv()
        except (EOFError, OSError):
            return
        try:
            if renderer is None:
                renderer = asked.made()
                answer = described(renderer)
            else:
                answer = renderer.encode(asked)
        except TitheError as error:
            answer = WorkerFailed(str(error), error.hint, expected=True)
        except Exception as error:  # it is told, and ends the run there
            answer = WorkerFailed(f"unexpected {type(error).__name__}: {error}", None, expected=False)
        channel.send(answer)


if __name__ == "__main__":
    end_with_parent()
    serve(Connection(int(sys.argv[1])))
