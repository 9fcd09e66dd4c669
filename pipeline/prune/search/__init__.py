"""Sizes by trial: choices under one budget, judged by how far they take the model's predictions from the dense model's."""
