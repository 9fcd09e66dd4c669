"""``trimline doctor``: what this machine has, and whether the versions pair."""

from __future__ import annotations

from dataclasses import asdict

from trimline.cli.options import Debug, Json
from trimline.cli.session import session


def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what this machine has and what clashes."""
    with session(as_json, debug) as here:
        from trimline.doctor import examine, render_findings

        findings = examine()
        render_findings(findings, here.out)
        here.answer({"findings": [asdict(finding) for finding in findings]})
