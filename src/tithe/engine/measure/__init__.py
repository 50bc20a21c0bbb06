"""Measurements and tuning for this machine and model: kernels, layouts, memory and fp8."""
