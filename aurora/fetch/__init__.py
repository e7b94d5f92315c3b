"""Fetching: one source to verified bytes with a manifest."""
