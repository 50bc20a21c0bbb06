"""Fine-tune a model on a selection."""
