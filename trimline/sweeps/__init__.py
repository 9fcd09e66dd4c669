"""A grid of recipes: every stage once, all points timed side by side, one page."""
