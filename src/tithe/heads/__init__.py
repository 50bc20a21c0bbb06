"""From a model's hidden states to one number a response. It calls no model and knows no engine."""
