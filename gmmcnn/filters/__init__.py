"""Filters: their fits, the rules that screen them, and the samples behind the anomalous ones."""
