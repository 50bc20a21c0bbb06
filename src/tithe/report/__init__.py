"""What a run shows: progress and tables in the terminal, charts, and HTML pages that are one file."""
