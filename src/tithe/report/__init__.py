"""Numbers as pictures and pages that need nothing but themselves."""
