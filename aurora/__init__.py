"""Aurora: a Chinese instruction tune of Mixtral-8x7B in 4 bits, as a DVC pipeline (arXiv 2312.14557)."""
