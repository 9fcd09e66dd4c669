"""Arithmetic of measurements: intervals, and the roofline."""
