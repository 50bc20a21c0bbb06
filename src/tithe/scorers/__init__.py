"""One paper per file: which passes it reads, and one formula."""
