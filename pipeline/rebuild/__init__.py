"""A plan into a physically smaller checkpoint that its real loader opens, gated against the dense model."""
