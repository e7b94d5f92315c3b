"""What every byte from outside passes: digests, disk space, archives."""
