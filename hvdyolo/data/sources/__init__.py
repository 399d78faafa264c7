"""Datasets as annotators leave them; they are only read."""
