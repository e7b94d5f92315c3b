"""What merge is made of: deltas, copies that share bytes, resumption, drift."""
