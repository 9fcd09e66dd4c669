"""Tasks in lm-eval's form that ship with the package: about 200 questions with four answers each, all our own, scored by log likelihood.

``trimline`` names all of them in a recipe or with ``--task``, ``trimline_facts`` and its like one. ``python -m benchmarks.studies.tasks``
makes the data from word lists.
"""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parent
ALL = "trimline"
OWN = ("facts", "completion", "arithmetic", "german", "code")


def shipped_files(name: str) -> list[Path]:
    """The task files that a name stands for: all, one, or none where it is no name of ours."""
    return [SHIPPED / f"{task}.yaml" for task in OWN if name in (ALL, f"{ALL}_{task}")]
