"""The command line: one file per verb; what verbs share stands in ``options``, ``session`` and ``console``."""
