"""Measure how fast scoring is on this machine."""
