"""Start `tithe` a hundred times for the price of one import.

Each command of a document, and each process that a test kills, needs torch and transformers, and their import takes
longer than the work itself. A server imports them once. A small `tithe` program sends it arguments, folder, environment
and the three streams, and a fork of the server carries the command out as the installed program would; `Forked` is a
fork that runs a script, as `python -c` would, and is a child of the process that asked for it.
"""

from __future__ import annotations

import array
import atexit
import ctypes
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
import tempfile
import time
import traceback
import types
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
SUBREAPER = 36  # prctl: whose parent ends becomes a child of this process
PROGRAM = """#!{python} -ISE
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({path!r})
asked = json.dumps([sys.argv, os.getcwd(), dict(os.environ), None, False]).encode()
streams = array.array("i", [0, 1, 2]).tobytes()
server.sendmsg([len(asked).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
server.sendall(asked)
sys.exit(int(server.recv(8)))
"""


@contextmanager
def forked_tithe(folder: Path) -> Iterator[Path]:
    """Yield a folder whose program `tithe` is carried out by forks of one server."""
    program = folder / "bin" / "tithe"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable, path=str(server())))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    yield program.parent


@cache
def server() -> Path:
    """Start this process's server, which ends with it; return its socket."""
    folder = tempfile.TemporaryDirectory(prefix="forked-")
    path = Path(folder.name) / "server"
    process = subprocess.Popen([sys.executable, "-m", "tests.forked", path], cwd=ROOT, stdout=subprocess.PIPE)

    def end() -> None:
        process.kill()
        process.wait()
        folder.cleanup()

    atexit.register(end)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"ready\n", "the server of commands did not start"
    return path


class Forked:
    """A process that runs a script, used like `subprocess.Popen` with text in two pipes."""

    def __init__(self, script: str, arguments: Sequence[str], environment: Mapping[str, str], session: bool) -> None:
        self.returncode: int | None = None
        (out, to_out), (err, to_err) = os.pipe(), os.pipe()
        with socket.socket(socket.AF_UNIX) as asking, Path(os.devnull).open("rb") as nothing:
            prctl = ctypes.CDLL(None).prctl
            asking.connect(str(server()))
            asked = json.dumps([["-c", *arguments], str(Path.cwd()), dict(environment), script, session]).encode()
            streams = array.array("i", [nothing.fileno(), to_out, to_err]).tobytes()
            prctl(SUBREAPER, 1, 0, 0, 0)
            asking.sendmsg([len(asked).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
            asking.sendall(asked)
            self.pid = int(asking.recv(16))
            while parent_of(self.pid) != os.getpid():
                time.sleep(0.001)
            prctl(SUBREAPER, 0, 0, 0, 0)  # what a test orphans goes to init, as ever
        os.close(to_out)
        os.close(to_err)
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = float("inf")) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a fork", timeout)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float = float("inf")) -> tuple[str, str]:
        with self.stdout, self.stderr, ThreadPoolExecutor(2) as pool:
            out, err = (pool.submit(stream.read) for stream in (self.stdout, self.stderr))
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return out.result(), err.result()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def serve(path: str) -> None:
    """Answer each connection with the exit code of its command, or the number of a script's process."""
    parent = os.getppid()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen()
    listening.settimeout(5)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for the commands
    print("ready", flush=True)
    while os.getppid() == parent:
        with suppress(TimeoutError):
            client, _ = listening.accept()
            if os.fork() == 0:
                listening.close()
                answer(client)
            client.close()


def answer(client: socket.socket) -> NoReturn:
    """Carry out one command in a fork of this process, and say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    client.setblocking(True)
    head, streams, _, _ = socket.recv_fds(client, 8, 3)
    asked = json.loads(client.recv(int.from_bytes(head, "big"), socket.MSG_WAITALL))
    pid = os.fork()
    if pid == 0:
        client.close()
        carry_out(streams, *asked)
    if asked[3] is not None:  # a script's process belongs to who asked for it, once this one has ended
        client.sendall(str(pid).encode())
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    client.sendall(str(code if code >= 0 else 128 - code).encode())  # as a shell says it
    os._exit(0)


def carry_out(
    streams: list[int], argv: list[str], folder: str, environment: dict[str, str], script: str | None, session: bool
) -> NoReturn:
    """Become the program that was asked for, and end as it does."""
    if session:
        os.setsid()
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = argv if script is not None else ["tithe", *argv[1:]]
    main = sys.modules["__main__"] = types.ModuleType("__main__")  # what workers import is not this server
    code: Any = 0
    try:
        if script is None:
            cli.main()
        else:
            exec(compile(script, "<string>", "exec"), main.__dict__)
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    with suppress(OSError, ValueError):
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
