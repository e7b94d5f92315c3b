"""LoRA adapters on disk: their configuration, and the record of what they were trained on."""
