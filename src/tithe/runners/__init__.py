"""Runners: they turn a plan into answers and scores."""
