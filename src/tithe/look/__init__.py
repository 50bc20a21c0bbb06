"""What a person looks at: a run as a self-contained page, one record in the terminal, how far runs agree."""

from tithe.look.write_page import Looked, look

__all__ = ["Looked", "look"]
