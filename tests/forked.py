"""Start `tithe` a hundred times for the price of one import.

Each command of a document needs torch and transformers, and their import takes longer than the command itself. A server
imports them once; a small `tithe` program sends it arguments, folder, environment and the three streams, and a fork of
the server carries the command out as the installed program would.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import stat
import subprocess
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parents[1]
PROGRAM = """#!{python} -ISE
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode()
streams = array.array("i", [0, 1, 2]).tobytes()
server.sendmsg([len(asked).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.sendall(asked)
sys.exit(int(server.recv(8)))
"""


@contextmanager
def forked_tithe(folder: Path) -> Iterator[Path]:
    """Yield a folder whose program `tithe` is carried out by forks of one server."""
    path = folder / "server"
    program = folder / "bin" / "tithe"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable, path=str(path)))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    server = subprocess.Popen([sys.executable, "-m", "tests.forked", path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "ready\n", "the server of commands did not start"
        yield program.parent
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


def serve(path: str) -> None:
    """Answer each connection with the exit code of its command."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the commands
    print("ready", flush=True)
    while True:
        client, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            answer(client)
        client.close()


def answer(client: socket.socket) -> NoReturn:
    """Carry out one command in a fork of this process, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, streams, _, _ = socket.recv_fds(client, 8, 3)
    asked = client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL)
    pid = os.fork()
    if pid == 0:
        client.close()
        carry_out(asked, streams)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    client.sendall(str(code if code >= 0 else 128 - code).encode())  # as a shell says it
    os._exit(0)


def carry_out(asked: bytes, streams: list[int]) -> NoReturn:
    """Become the program that was asked for, and end as it does."""
    argv, folder, environment = json.loads(asked)
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["tithe", *argv[1:]]
    sys.modules["__main__"] = types.ModuleType("__main__")  # what workers import is not this server
    code: object = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking down all that the server has imported would cost ten times what a short command does.
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # looked at by imports, as `cli.main` sets it before them
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import tithe
    from tithe import cli

    for found in pkgutil.walk_packages(tithe.__path__, "tithe."):
        importlib.import_module(found.name)  # what a command imports it finds here, and takes no time for
    gc.freeze()  # a collection in a fork would copy all of it
    serve(sys.argv[1])
