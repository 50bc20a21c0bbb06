"""The only packages that touch a model: loading, batches, forward passes, readouts and the store of answers."""
