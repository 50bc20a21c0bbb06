"""Quality tiers: better and worse responses to the same prompts, from stronger and weaker models or people."""
