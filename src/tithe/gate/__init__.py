"""The gate: find damaged records by the hidden states of the model that scores them, without labels."""
