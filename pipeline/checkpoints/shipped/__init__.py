"""Templates of the modelling files that ship inside a checkpoint whose blocks differ."""
