"""What a report says of accuracy beside perplexity: losses by position, what is found in long texts, whose answers changed."""
