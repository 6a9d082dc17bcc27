"""Sweeps: many runs that were asked for at once, in one folder that knows what was asked and how far it came."""
