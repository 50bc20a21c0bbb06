"""Let a model, here or on a server, write responses."""
