"""Where the reference numbers and data sets beside the checkout are.

Tests that read them are skipped where they are missing, unless TITHE_REQUIRE_SHARED=1 says that they must be there.
"""

import os
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"

if os.environ.get("TITHE_REQUIRE_SHARED") == "1" and not SHARED.is_dir():
    raise FileNotFoundError(f"TITHE_REQUIRE_SHARED=1, but there is no folder {SHARED}")
