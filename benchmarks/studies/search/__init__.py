"""Searched sizes beside a method's own, and a linear map in place of blocks."""
