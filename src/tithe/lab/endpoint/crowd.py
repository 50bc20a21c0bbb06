"""Many requests at once, a bounded number under way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def crowd(work: Callable[[A], B], items: Iterable[A], at_once: int, stop: Callable[[], None]) -> Iterator[tuple[A, B]]:
    """Yield each item with what became of it, in order of completion.

    The first exception ends it: those under way are told to `stop`, what is finished by then is still yielded, and the
    exception comes last. So no answer that was paid for is lost.
    """
    waiting = iter(items)
    under_way: dict[Future[B], A] = {}
    failure: BaseException | None = None
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while True:
                while failure is None and len(under_way) < at_once and (item := next(waiting, None)) is not None:
                    under_way[pool.submit(work, item)] = item
                if not under_way:
                    break
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    item = under_way.pop(future)
                    error = future.exception()
                    if error is None:
                        yield item, future.result()
                    elif failure is None:
                        failure = error
                        stop()
        except BaseException:
            stop()
            raise
    if failure is not None:
        raise failure
