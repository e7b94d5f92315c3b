"""What sft is made of: the trainer, checkpoints, processes, curves; and what is known before it runs."""
