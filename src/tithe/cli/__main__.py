"""`python -m tithe.cli` is `tithe`."""

from tithe.cli import main

if __name__ == "__main__":  # the documents' tests import every module
    main()
