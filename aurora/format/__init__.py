"""What format is made of: the prompt, the tokeniser, the split, rows and what is known of them."""
