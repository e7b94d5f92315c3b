"""What fetch is made of: downloads, archives, digests, records of what was fetched before.

The hub's addresses, listings, headers and HTTP client are huggingface_hub's; the transfer of a file is own code, since
huggingface_hub 2.4 deletes what has come when a download fails and never goes on with it in a later run. fsspec 2026.9
serves nowhere: its HTTPFileSystem.get_file opens the target with "wb", asks for no range and hashes nothing, its tar and
zip file systems hold the index of all members in memory without a limit, and of a local file it is `open`.
"""
