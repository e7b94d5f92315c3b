"""What fetch is made of: downloads, archives, digests, records of what was fetched before."""
