"""A recipe's stages, from the source to the package: which needs what, rounds towards a target, what the report is told."""
