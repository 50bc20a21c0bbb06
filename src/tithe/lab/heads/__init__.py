"""Train and test heads on tiers of responses."""
