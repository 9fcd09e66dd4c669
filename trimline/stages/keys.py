"""The code in a stage's key: what its work can reach, with the methods, families and targets that it uses."""

from __future__ import annotations

from collections.abc import Iterable

from deploy import targets
from deploy.recipe import PackageSlice
from pipeline.architecture import families
from pipeline.artefacts.reach import code_of
from pipeline.prune import methods
from pipeline.prune.recipe import PruneSlice
from pipeline.prune.steps import resolve_steps


def stage_code(
    *entries: str, steps: PruneSlice | None = None, model_types: Iterable[str] | None = None, package: PackageSlice | None = None
) -> str:
    """Hash of what a stage can reach.

    Args:
        entries: dotted names of the modules that do its work.
        steps: whose methods run; None where no method does.
        model_types: of the families whose descriptions decide what it writes; None where it is not known which, so all count.
        package: whose targets are written; None where none is.

    Raises:
        TrimlineError: a step cannot be done.
    """
    return code_of(entries, members_of(steps, model_types, package))


def members_of(steps: PruneSlice | None, model_types: Iterable[str] | None, package: PackageSlice | None) -> dict[str, frozenset[str]]:
    """Members of the collections, as ``pipeline.artefacts.reach.code_of`` takes them; arguments as ``stage_code`` has them."""
    found: dict[str, frozenset[str]] = {}
    if steps is not None:
        found[methods.__name__] = _modules(step.method for step in resolve_steps(steps))
    if package is not None:
        found[targets.__name__] = _modules(targets.wanted_targets(package))
    if model_types is not None:
        found[families.__name__] = frozenset(f"{families.__name__}.{model_type}" for model_type in model_types)
    return found


def _modules(members: Iterable[object]) -> frozenset[str]:
    return frozenset(type(member).__module__ for member in members)
