"""What a selection is worth: judged, measured, compared."""
