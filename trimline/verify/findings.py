"""What a verification found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.artefacts.sums import Problem
from pipeline.common.errors import TrimlineError


@dataclass
class Verification:
    """What was found.

    Attributes:
        problems: what is not as it was written; empty where all is well.
        passed: checks that were made again, in words.
        left_out: checks that were not, and why.
    """

    problems: list[Problem] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def as_record(self) -> dict[str, Any]:
        """JSON-compatible."""
        return asdict(self) | {"problems": [str(problem) for problem in self.problems]}

    def check(self, name: str, title: str, work: Callable[[], object]) -> None:
        """Runs one check; what it raises is a problem of ``name``."""
        try:
            work()
        except TrimlineError as error:
            self.problems.append(Problem(name, f"{title}: {error.problem}"))
        else:
            self.passed.append(f"{name}: {title}")


@dataclass(frozen=True)
class Sides:
    """Where the other side of a gate is: the checkpoint that a folder was made from, and the plan of a rebuilt one."""

    checkpoint: Path | None = None
    plan: Path | None = None
