"""Worker processes and devices that read for one run."""
