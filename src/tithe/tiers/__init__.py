"""Responses of two qualities to the same prompts: what is read, matched and looked at, without a model."""
