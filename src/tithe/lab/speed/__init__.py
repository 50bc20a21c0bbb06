"""How fast scoring is on this machine, and what limits it."""
