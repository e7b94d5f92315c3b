"""A model on disk and in memory: headers and shards, NF4 experts, the one loader, byte counts, the device."""
