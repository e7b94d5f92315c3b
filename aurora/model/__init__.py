"""Models on disk and in memory: headers, NF4 experts, the one loader, sizes."""
