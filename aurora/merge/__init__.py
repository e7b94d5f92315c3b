"""Merging: the adapter's deltas into the base, shard by shard, and the drift."""
