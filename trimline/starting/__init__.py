"""A recipe to start from: what it is to do, what can do it, and the text with its comments."""
