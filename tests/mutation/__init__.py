"""Mutants: our own code changed in one place, to see which tests notice; ``make mutants``, described in docs/mutants.md."""
