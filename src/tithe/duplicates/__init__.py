"""Find records that are nearly the same as another one; no model."""
