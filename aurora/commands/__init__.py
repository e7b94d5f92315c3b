"""What the aurora command answers; no stage runs it."""
