"""The command line: parse, call one library function, print. stdout is data, stderr is talk."""

from tithe.cli import core, lab
from tithe.cli.app import Usage
from tithe.cli.entry import dashed, main

__all__ = ["Usage", "core", "dashed", "lab", "main"]
