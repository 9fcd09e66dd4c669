"""What a model is made of, without its weights: families as data, sizes per block, what can be removed, in which shapes."""
