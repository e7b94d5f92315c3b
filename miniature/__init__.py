"""The world of the small profile: its facts, its samples and the training of its base; no stage runs any of it."""
