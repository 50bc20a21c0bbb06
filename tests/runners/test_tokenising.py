"""Tokenising processes give the same encodings in order, and their failures are reported and leave nothing behind."""

import os
import signal
import sys
import time
from concurrent.futures import wait
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread

import pytest

from tithe.data.render import EncodedExample, RenderSettings, make_renderer
from tithe.engine.model_source import find_model, load_tokenizer
from tithe.records import Ask, Example, Message, PassSpec, Problem
from tithe.runners import tokeniser
from tithe.runners.local import LocalRunner
from tithe.runners.tokenising import RendererRecipe, TokeniserError, Tokenisers, describe_renderer
from tithe.runners.trace import Work
from tithe.scorers.ifd import IFD

PIECES = ("lead", "prompt", "response", "after")


def example(i, text="Green."):
    return Example(f"{i:016x}", i, 1, (Message("user", f"Name colour {i}."),), Message("assistant", text))


def examples(count):
    """Examples, some without a response, one with a lone surrogate, one with a tool."""
    found = [example(i, "" if i % 11 == 3 else f"Red and {i}\n") for i in range(count)]
    found[5] = example(5, "half \ud800")
    found[7] = Example("tool", 7, 1, found[7].prompt, found[7].response, tools=({"name": "f", "parameters": {}},))
    return found


def alike(a, b):
    if isinstance(a, Problem) or isinstance(b, Problem):
        return a == b
    return all(getattr(a, name).tolist() == getattr(b, name).tolist() for name in PIECES)


@pytest.fixture(scope="module")
def tokenisers(model_dir):
    source = find_model(str(model_dir))
    return Tokenisers(source, make_renderer(load_tokenizer(source), RenderSettings(max_length=64)))


def test_a_process_answers_what_the_renderer_says(tokenisers, monkeypatch):
    """Run the loop of a tokenising process in a thread."""
    monkeypatch.setattr("tithe.runners.tokenising.hide_torch", lambda: None)
    some, (ours, theirs) = examples(20), Pipe()
    thread = Thread(target=tokeniser.serve, args=(theirs,))
    thread.start()
    ours.send(RendererRecipe(tokenisers.source, False, type(tokenisers.renderer), tokenisers.renderer.settings))
    assert ours.recv() == describe_renderer(tokenisers.renderer)
    ours.send(some)
    got = ours.recv()
    assert len(got) == len(some) and all(map(alike, got, tokenisers.renderer.encode(some)))
    assert {type(one) for one in got} == {EncodedExample, Problem}
    ours.send([["not", "an example"]])
    assert ours.recv().message.startswith("unexpected AttributeError")
    ours.close()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize(("work", "device", "cores", "count"), [
    (Work(waited=1.9), "cuda", 16, 0),
    (Work(waited=2.0), "cuda", 16, 4),
    (Work(waited=2.0), "cuda", 3, 2),
    (Work(waited=2.0), "cuda", 1, 0),
    (Work(waited=99.0, planned=9.0, seconds=9.0), "cpu", 16, 0),
    (Work(planned=2.1, seconds=8.0), "cuda", 16, 4),  # more than a quarter of what reading takes
    (Work(planned=2.1, seconds=8.5), "cuda", 16, 0),
    (Work(planned=1.9, seconds=2.0), "cuda", 16, 0),  # too little yet
    (Work(planned=9.0), "cuda", 16, 0),  # nothing read yet: nobody knows
])  # fmt: skip
def test_they_are_started_beside_idle_cores_where_a_thread_is_too_slow_or_too_much(
    tokenisers, monkeypatch, work, device, cores, count
):
    started, said = [], []
    monkeypatch.setattr("tithe.engine.host.cpu_cores", lambda: cores)
    monkeypatch.setattr(Tokenisers, "start", lambda self, count: (started.append(count), setattr(self, "count", count)))
    made = Tokenisers(tokenisers.source, tokenisers.renderer, say=said.append)
    for _ in range(2):  # and once only
        made.start_if_slow(work, device)
    assert started == [count] * bool(count) and len(said) == len(started)
    assert not said or ("waited 2.0 s" in said[0] if work.waited else "a thread planned for 2.1 s" in said[0])
    assert made.encode(examples(20))() == {}  # nothing is ready: the thread does it


def gone(pid):
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_windows_are_those_of_a_single_process(tokenisers, monkeypatch):
    """Real processes give the same windows, one sentence if one is killed, and none is left in the end."""
    monkeypatch.setattr("tithe.planner.WINDOW", 8)
    monkeypatch.setattr("tithe.runners.tokenising.PIECE", 3)
    runner = LocalRunner({"ifd": IFD()}, tokenisers.renderer, None, {})
    chunks = [examples(60)[i : i + 8] for i in range(0, 60, 8)]
    plain = list(runner.planned(chunks))
    made = Tokenisers(tokenisers.source, tokenisers.renderer)
    try:
        made.start(2)
        assert made.encode(chunks[0])() == {} or made.ahead
        for ready in made._ready:
            ready.result()
        pids = [process.pid for process in made._all]
        assert not any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in pids)
        runner.tokenisers = made
        got = list(runner.planned(chunks))
        assert [window.items for window in got] == [window.items for window in plain]
        for a, b in zip(got, plain, strict=True):
            assert [one.key for one in a.passes] == [one.key for one in b.passes]
            assert (a.slots, a.kinds, a.readouts) == (b.slots, b.kinds, b.readouts)
        os.kill(pids[0], signal.SIGKILL)
        with pytest.raises(TokeniserError, match="ended with signal 9"):
            list(runner.planned(chunks))
    finally:
        made.stop()
    assert all(map(gone, pids))


@pytest.mark.slow
def test_what_lies_in_the_present_folder_is_not_taken_for_a_module(tokenisers, tmp_path, monkeypatch):
    for name in ("queue.py", "tithe.py", "transformers.py"):
        (tmp_path / name).write_text("raise SystemExit('code of the folder ran')\n")
    monkeypatch.chdir(tmp_path)
    made = Tokenisers(tokenisers.source, tokenisers.renderer)
    try:
        made.start(1)
        made._ready[0].result()
        assert set(made.encode([example(1)])()) == {example(1).id}
    finally:
        made.stop()


def test_processes_that_do_not_start_leave_the_work_to_the_thread(tokenisers, tmp_path, monkeypatch):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho first >&2\necho 'No module named tithe' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(broken))
    said = []
    made = Tokenisers(tokenisers.source, tokenisers.renderer, say=said.append)
    made.start(2)
    wait(made._ready)
    assert made.ahead and made.encode(examples(20))() == {}
    why = "a tokenising process ended with exit code 3, and its last words were: No module named tithe"
    assert said == [f"note: {why}; a thread tokenises as before"] and made.as_dict()["gave_up"] == why
    assert not made.ahead and made.encode(examples(20))() == {} and len(said) == 1
    made.start_if_slow(Work(waited=99.0), "cuda")
    assert not made.ahead and not made._all  # once is enough


def test_asks_of_others_are_tokenised_here(tokenisers):
    """Planning a window tokenises what is not encoded yet."""
    one, other = example(1), example(2)
    runner = LocalRunner({"ifd": IFD()}, tokenisers.renderer, None, {})
    given = dict(zip([one.id], tokenisers.renderer.encode([one]), strict=True))
    a, b = runner.plan([one, other], given), runner.plan([one, other])
    assert [each.key for each in a.passes] == [each.key for each in b.passes]
    assert Ask(PassSpec("given", one), "nll") in IFD().asks(one).values()
