"""What eval is made of: benchmarks under lm-eval with shared prefixes, loss, replies, comparison."""
