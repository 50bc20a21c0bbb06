"""Which of two responses is better, in the opinion of a model."""
