"""Kronecker-factored curvature of one projection: costs of removing something, and the best update of what stays."""
