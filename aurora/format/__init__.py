"""Formatting: conversations to token rows, the split, statistics, previews."""
