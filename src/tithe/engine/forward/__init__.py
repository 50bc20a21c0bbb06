"""One way through a model: packed, padded or single."""
