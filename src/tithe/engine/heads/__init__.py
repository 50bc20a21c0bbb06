"""Heads on hidden states: what they are, their files, and how one is applied."""
