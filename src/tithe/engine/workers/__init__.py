"""Processes and devices that read for one run."""
