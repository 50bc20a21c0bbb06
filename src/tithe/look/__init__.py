"""What a person looks at: a run folder as one self-contained page."""

from tithe.look.write_page import Looked, look

__all__ = ["Looked", "look"]
