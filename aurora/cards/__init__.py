"""What a model says of itself: model cards, and the hashes of what it was made from."""
