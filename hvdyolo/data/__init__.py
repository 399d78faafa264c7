"""Packed shards: writing, reading, order, augmentation, loading."""
