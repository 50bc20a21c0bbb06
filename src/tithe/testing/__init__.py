"""Check that scorers, selectors and readouts keep to the contract; call these from the tests of your plugin.

Each function raises AssertionError with what was expected, what came, and why it matters.
"""

from tithe.testing.fake_bench import FakeBench
from tithe.testing.readouts import check_readout
from tithe.testing.scorers import check_scorer
from tithe.testing.selectors import check_selector

__all__ = ["FakeBench", "check_readout", "check_scorer", "check_selector"]
