"""Find text that a data set shares with evaluation sets, word for word."""
