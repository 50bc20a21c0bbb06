"""What is read from a forward pass while it is in memory."""
