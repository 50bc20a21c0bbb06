"""Where the reference numbers and data sets beside the checkout are."""

from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
