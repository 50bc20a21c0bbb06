"""The command line: parse, call one library function, print. Data goes to stdout, messages to stderr."""

from tithe.cli import core, lab, publishing
from tithe.cli.app import Usage
from tithe.cli.entry import dashed, main

__all__ = ["Usage", "core", "dashed", "lab", "main", "publishing"]
