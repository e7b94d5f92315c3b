"""Scores of the adapters that a training kept at chosen steps."""
