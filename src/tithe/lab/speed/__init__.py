"""How fast scoring is on this machine."""
