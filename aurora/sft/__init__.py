"""Supervised fine-tuning: the trainer, checkpoints, processes, curves, the plan."""
