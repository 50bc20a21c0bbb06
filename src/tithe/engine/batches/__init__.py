"""Which passes are read together, and which beginnings they share."""
