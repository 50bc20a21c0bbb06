"""Look a data set over before it is used: bad rows, duplicates, truncation, contamination, lengths, languages."""
