"""Quality heads on hidden states: their interface, their kinds and their files."""
