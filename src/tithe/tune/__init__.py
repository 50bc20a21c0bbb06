"""Fine-tuning through TRL, PEFT and accelerate: recipes, rows, batches, the training itself."""
