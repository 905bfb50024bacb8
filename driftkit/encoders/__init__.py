"""Frozen encoders: what they are (`specs`), how they load (`loading`), and how maps become features (`features`)."""
