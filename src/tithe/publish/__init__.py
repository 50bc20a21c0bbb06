"""Publish a selection: its dataset card, a folder that `datasets` opens, and a repository on the hub."""
