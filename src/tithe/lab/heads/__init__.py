"""Train heads on two quality tiers of responses, and judge them."""
