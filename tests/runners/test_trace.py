"""The trace of a run is bounded, and merging spans loses nothing."""

from hypothesis import given
from hypothesis import strategies as st

from tithe.runners.trace import Span, Trace


@given(st.integers(0, 300), st.integers(2, 9))
def test_sums_and_ends_stay(windows, most):
    trace = Trace(most)
    for i in range(windows):
        trace.add(Span(1, 10, 100 + i, planned=2.0 * i, began=3.0 * i + 1, ended=3.0 * i + 3, waited=0.25 * (i % 3)))
    assert len(trace.spans) <= most
    assert sum(span.windows for span in trace.spans) == windows
    assert sum(span.examples for span in trace.spans) == 10 * windows
    assert sum(span.tokens for span in trace.spans) == sum(100 + i for i in range(windows))
    assert sum(span.waited for span in trace.spans) == sum(0.25 * (i % 3) for i in range(windows))
    at = 0
    for span in trace.spans:  # each goes from its first window's beginning to its last one's end
        assert (span.planned, span.began) == (2.0 * at, 3.0 * at + 1)
        at += span.windows
        assert span.ended == 3.0 * (at - 1) + 3
    assert all(span.windows == trace.spans[0].windows for span in trace.spans[:-1])
    assert trace.worst == (0.25 * min(2, windows - 1) if windows else 0)
    told = trace.as_dict()
    assert all(len(column) == len(trace.spans) for name, column in told.items() if name != "start")
