"""The command line: parse, call one library function, print. stdout is data, stderr is talk."""

# ruff: noqa: F401, I001  (these modules put their commands on the program, in the order of its help)
from tithe.cli import runs
from tithe.cli import bench
from tithe.cli import contamination
from tithe.cli import lists
from tithe.cli import tiers
from tithe.cli import heads
from tithe.cli import tune
from tithe.cli import judge
from tithe.cli import evaluate
from tithe.cli import experiment
from tithe.cli.app import Usage
from tithe.cli.entry import dashed, main

__all__ = ["Usage", "dashed", "main"]
