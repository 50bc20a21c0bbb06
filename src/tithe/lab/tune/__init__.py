"""Fine-tune a model on a selection, and warm one up before it scores."""
