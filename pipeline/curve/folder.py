"""File names of a curve."""

RESULT = "curve.json"
