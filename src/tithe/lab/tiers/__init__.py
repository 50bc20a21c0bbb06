"""Several responses to one prompt, of models or people of different strength."""
