"""Measure a model: held-out responses, benchmarks, generated programs; and compare two of them."""
