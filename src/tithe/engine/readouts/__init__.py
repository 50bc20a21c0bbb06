"""Readouts: what is computed from a forward pass while its activations are in memory."""
