"""Updates of the projections that read what was removed."""
