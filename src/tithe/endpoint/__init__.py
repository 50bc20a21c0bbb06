"""Models behind an OpenAI-compatible address: asked politely, again where that helps, and with the key kept secret."""
