"""LoRA on a model in memory: what it adapts, experts in 4 bits among it, and adapters put on and read back."""
