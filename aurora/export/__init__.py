"""A model as a folder to publish: what belongs into it, in which words, and in GGUF."""
