"""Masks over filters, what they do downstream, and structural removal."""
