"""Evaluation: lm-eval benchmarks, held-out loss, replies."""
