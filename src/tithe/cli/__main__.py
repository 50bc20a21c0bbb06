"""`python -m tithe.cli` is `tithe`."""

from tithe.cli import main

main()
