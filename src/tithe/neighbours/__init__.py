"""What is like what: prompts as vectors, nearest neighbours, clusters."""
