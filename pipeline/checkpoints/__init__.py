"""A model on disk: a checkpoint folder read and written, and the modelling files that ship in it."""
