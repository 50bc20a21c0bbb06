"""Have a model judge which of two responses is better."""
