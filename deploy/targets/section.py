"""The model card's last section: which servers the package brings a folder for, and how each is started."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.targets.target import ServerTarget

HEADING = "## Serve it"


def with_section(card: str, targets: Sequence[ServerTarget]) -> str:
    """The card with that section at its end, in place of an older one; without targets, the card without the section."""
    body = card.split(f"\n{HEADING}\n")[0].rstrip("\n") + "\n"
    if not targets:
        return body
    rows = "".join(f"| {target.name} | `serve/{target.name}/` | `{target.start}` |\n" for target in targets)
    table = f"| server | folder | started there by |\n| --- | --- | --- |\n{rows}"
    return f"{body}\n{HEADING}\n\n{table}\nEach folder has a README.md that says what its server needs.\n"
