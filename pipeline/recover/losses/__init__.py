"""What training lowers: cross-entropy of the text, or the distance from the dense model; computed in parts of the positions."""
