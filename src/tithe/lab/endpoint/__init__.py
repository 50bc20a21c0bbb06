"""A server that answers in the manner of OpenAI."""
